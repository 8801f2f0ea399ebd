"""One dialog as the engine keeps it: its options, its clock, where each frame stands on that clock, and its text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from model.engine.frame_ring import FrameRing, RingFrame
from model.engine.options import DialogOptions
from model.engine.sampling import SamplerState
from model.network.clock import Clock

Indices = npt.NDArray[np.int64]


class PriorToken(NamedTuple):
    """A token that another engine already made for this turn."""

    token_id: int
    generated_s: float  # on the cameras' clock


class PendingToken(NamedTuple):
    """A token that no forward has read yet."""

    token_id: int
    temporal_index: int  # temporal index on the dialog's clock
    newest_frame: int  # number of the newest frame that the token made from it sees; -1: none


class Turn(NamedTuple):
    """Where a turn begins: which token of the text, and when on the dialog's clock."""

    first_token: int
    temporal_index: int


@dataclass(slots=True, eq=False)
class Dialog:
    """State of one dialog."""

    dialog_id: str
    camera: str
    options: DialogOptions
    camera_ring: FrameRing  # the camera's ring
    sampler: SamplerState
    num_pinned_tokens: int = 0  # first tokens that are never dropped
    clock: Clock = field(default_factory=Clock)
    camera_frame_index: Indices = field(init=False)  # by slot of `live`: indices on this clock
    # What the dialog looks at: `live` itself, or what `live` was when the question came.
    ring: FrameRing = field(init=False)
    ring_frame_index: Indices = field(init=False)
    last_visible_frame: int | None = None  # frozen: number of the newest frame at the question
    # Its text, as it lies in the text store.
    pages: list[int] = field(default_factory=list[int])  # -1: given back, all of its tokens were dropped
    num_computed_tokens: int = 0  # tokens read so far, those that were dropped included
    dropped_tokens: tuple[int, int] = (
        0,
        0,
    )  # tokens that were dropped: the first of them, and the first one after them
    turns: list[Turn] = field(default_factory=list[Turn])
    token_ids: list[int] = field(default_factory=list[int])  # all that was heard and said
    pending_tokens: list[PendingToken] = field(
        default_factory=list[PendingToken]
    )  # of a prompt that is not read to its end
    last_token_id: int | None = None  # the newest token: reading it makes the next one
    last_temporal_index: int = 0
    num_generated: int = 0  # tokens of the turn in progress
    finish_reason: Literal["stop", "length"] | None = None

    def __post_init__(self) -> None:
        self.camera_frame_index = np.zeros(self.camera_ring.capacity, np.int64)
        self.ring, self.ring_frame_index = self.camera_ring, self.camera_frame_index

    # Hearing and speaking

    def start(
        self, token_ids: Sequence[int], prior_tokens: Sequence[PriorToken] = (), asked_s: float = 0.0
    ) -> None:
        """The first turn: frames in the ring arrive, then a question.

        With `spoken`, an answer is taken up again: frames captured after `asked_s` arrive between its tokens, as
        they did then.
        """
        frames = self.camera_ring.in_order()
        num_before = len(frames)
        if prior_tokens:
            num_before = sum(frame.captured_s <= asked_s for _, frame in frames)
        self._add_frames(frames[:num_before])
        self.start_turn(token_ids, frames[num_before - 1][1].number if num_before else -1)
        waiting = frames[num_before:]
        for token in prior_tokens:
            arrived = sum(frame.captured_s <= token.generated_s for _, frame in waiting)
            self._add_frames(waiting[:arrived])
            waiting = waiting[arrived:]
            before = len(frames) - len(waiting)
            self._queue_token(token.token_id, frames[before - 1][1].number if before else -1)
            self._record_token(token.token_id)
        self._add_frames(waiting)

    def start_turn(self, token_ids: Sequence[int], newest_frame: int) -> None:
        """A turn starts now; `newest` is the number of the newest frame."""
        self.num_generated, self.finish_reason = 0, None
        self.ring, self.ring_frame_index, self.last_visible_frame = (
            self.camera_ring,
            self.camera_frame_index,
            None,
        )
        if self.options.visual_context == "frozen":
            assert self.camera_ring.snapshot is not None  # the engine made it
            self.ring, self.ring_frame_index, self.last_visible_frame = (
                self.camera_ring.snapshot,
                self.camera_frame_index.copy(),
                newest_frame,
            )
        self.clock.turn_started()
        self.token_ids += token_ids
        self.sampler.add_prompt(self.token_ids)
        first = self.num_computed_tokens + (self.last_token_id is not None)
        for number, token_id in enumerate(token_ids):
            self._queue_token(token_id, newest_frame)
            if number == 0:
                self.turns.append(Turn(first, self.last_temporal_index))

    def append_token(self, token_id: int, *, window_full: bool) -> None:
        """A token was made from the pending one, which has been read; `full`: there is no room for another."""
        self.num_computed_tokens += 1
        self.last_token_id, self.last_temporal_index = token_id, self.clock.token_made()
        self._record_token(token_id)
        if token_id in self.options.stop_ids:
            self.end_turn("stop")
        elif window_full or self.num_generated >= self.options.max_tokens:
            self.end_turn("length")

    def end_turn(self, reason: Literal["stop", "length"]) -> None:
        """The turn is over."""
        self.finish_reason = self.finish_reason or reason
        self.clock.turn_ended()

    def mark_computed(self, num_tokens: int) -> None:
        """So many of the unread tokens lie in the text store now."""
        self.num_computed_tokens += num_tokens
        del self.pending_tokens[:num_tokens]

    @property
    def input_token_id(self) -> int:
        """The token that the next step reads."""
        assert self.last_token_id is not None
        return self.last_token_id

    # Looking

    @property
    def sees_whole_ring(self) -> bool:
        """Whether the next token sees every slot of a full ring."""
        num_frames = self.options.num_frames
        return self.ring.is_full and (num_frames is None or num_frames >= self.ring.capacity)

    def visible_slots(self, newest_frame: int) -> list[bool]:
        """By slot of `ring`: the newest `num_frames` frames up to number `newest`."""
        last = newest_frame if self.last_visible_frame is None else min(newest_frame, self.last_visible_frame)
        slots = [slot for slot, frame in self.ring.in_order() if frame.number <= last]
        seen = set(slots[-(self.options.num_frames or self.ring.capacity) :])
        return [slot in seen for slot in range(self.ring.capacity)]

    def newest_visible_frame(self) -> RingFrame | None:
        """The newest frame that the next token can see."""
        if self.last_visible_frame is None or (
            self.ring.newest and self.ring.newest.number <= self.last_visible_frame
        ):
            return self.ring.newest
        frames = [frame for _, frame in self.ring.in_order() if frame.number <= self.last_visible_frame]
        return frames[-1] if frames else None

    # Text

    @property
    def num_cached_tokens(self) -> int:
        """Tokens that lie in the text store."""
        return self.num_computed_tokens - (self.dropped_tokens[1] - self.dropped_tokens[0])

    def masked_tokens(self, start: int, size: int) -> npt.NDArray[np.bool_]:
        """Which of these places of the text hold nothing that may be read: dropped, or not read yet."""
        place = np.arange(start, start + size)
        first, end = self.dropped_tokens
        return (place >= self.num_computed_tokens) | ((place >= first) & (place < end))

    def drop_oldest_turn(self, page_tokens: int) -> list[int] | None:
        """Forget the oldest turn; returns the pages that hold nothing any more. None: there is only one turn."""
        if len(self.turns) < 2:
            return None
        del self.turns[0]
        first = (
            max(self.num_pinned_tokens, self.dropped_tokens[0])
            if self.dropped_tokens[1]
            else self.num_pinned_tokens
        )
        self.dropped_tokens = (first, max(self.turns[0].first_token, first))
        freed: list[int] = []
        for at in range(-(-first // page_tokens), self.dropped_tokens[1] // page_tokens):
            if self.pages[at] >= 0:
                freed.append(self.pages[at])
                self.pages[at] = -1
        return freed

    def _add_frames(self, frames: Sequence[tuple[int, RingFrame]]) -> None:
        for slot, _ in frames:
            self.camera_frame_index[slot] = self.clock.frame_arrived()

    def _record_token(self, token_id: int) -> None:
        self.token_ids.append(token_id)
        self.sampler.add_token(token_id)
        self.num_generated += 1

    def _queue_token(self, token_id: int, newest_frame: int) -> None:
        """A token comes after the pending one, which may be read now: what it makes sees frames up to `newest`."""
        if self.last_token_id is not None:
            self.pending_tokens.append(
                PendingToken(self.last_token_id, self.last_temporal_index, newest_frame)
            )
        self.last_token_id, self.last_temporal_index = token_id, self.clock.token_made()
