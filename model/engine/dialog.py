"""The state of one dialog: its options, its clock, the temporal index of each frame, and its text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from model.engine.frame_ring import FrameRing, RingFrame
from model.engine.options import DialogOptions
from model.engine.sampling import SamplerState, TokenLogprobs
from model.network.clock import Clock

Indices = npt.NDArray[np.int64]


class PriorToken(NamedTuple):
    """A token that another engine generated for this turn."""

    token_id: int
    generated_s: float  # on the cameras' clock


class PendingToken(NamedTuple):
    """A prompt token that no forward has read yet."""

    token_id: int
    temporal_index: int  # on the dialog's clock
    newest_frame: int  # number of the newest frame that its query sees; -1: none


class GeneratedToken(NamedTuple):
    """A token that a step generated, and the newest frame that it could see (None: there was no frame)."""

    dialog_id: str
    token_id: int
    frame_id: str | None
    captured_s: float | None
    temporal_index: int  # on the dialog's clock
    finish_reason: Literal["stop", "length"] | None  # None: the turn continues
    logprobs: TokenLogprobs | None = None  # if they were asked for


class Turn(NamedTuple):
    """Where a turn starts."""

    first_token: int  # position in the text
    temporal_index: int  # on the dialog's clock


class DialogsFailed(RuntimeError):
    """Some dialogs of a step cannot go on; the others can. No dialog got a token."""

    def __init__(self, dialog_ids: Sequence[str], reason: str) -> None:
        super().__init__(reason)
        self.dialog_ids = dialog_ids


@dataclass(slots=True, eq=False)
class Dialog:
    """One dialog. The engine alone changes it."""

    dialog_id: str
    camera: str
    options: DialogOptions
    camera_ring: FrameRing
    sampler: SamplerState
    num_pinned_tokens: int = 0  # first tokens, which are never dropped
    clock: Clock = field(default_factory=Clock)
    camera_frame_index: Indices = field(init=False)  # by slot of `camera_ring`: temporal indices on `clock`
    # What the dialog sees: its camera's ring, or a snapshot of it from the time of the question.
    ring: FrameRing = field(init=False)
    ring_frame_index: Indices = field(init=False)  # by slot of `ring`
    last_visible_frame: int | None = None  # frozen: number of the newest frame at the question
    # Its text, and where the text cache holds it.
    pages: list[int] = field(default_factory=list[int])  # -1: freed, all of its tokens were dropped
    num_computed_tokens: int = 0  # tokens whose keys and values were computed, dropped ones included
    dropped_tokens: range = range(0)  # positions in the text
    turns: list[Turn] = field(default_factory=list[Turn])
    token_ids: list[int] = field(default_factory=list[int])  # of all prompts and answers
    pending_tokens: list[PendingToken] = field(default_factory=list[PendingToken])  # left to prefill
    last_token_id: int | None = None  # the newest token; the next step reads it
    last_temporal_index: int = 0  # of the newest token
    num_generated: int = 0  # tokens of this turn's answer
    finish_reason: Literal["stop", "length"] | None = None

    def __post_init__(self) -> None:
        self.camera_frame_index = np.zeros(self.camera_ring.capacity, np.int64)
        self.see_camera()

    # Turns

    def start(
        self, token_ids: Sequence[int], prior_tokens: Sequence[PriorToken] = (), asked_s: float = 0.0
    ) -> None:
        """The first turn: the frames in the ring arrive, then the question.

        With `prior_tokens` an answer is resumed. Frames that were captured after `asked_s` then arrive between its
        tokens, as they did in the first engine. If the frames of the question are gone (or the camera's clock is
        ahead), the oldest frame that is there takes their place.
        """
        frames = self.camera_ring.in_order()
        num_before = len(frames)
        if prior_tokens and frames:
            num_before = max(1, sum(frame.captured_s <= asked_s for _, frame in frames))
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
        """Start a turn with a prompt; `newest_frame` is the number of the newest frame, -1 if there is none."""
        self.num_generated, self.finish_reason = 0, None
        self.see_camera()
        if self.options.visual_context == "frozen":
            assert self.camera_ring.snapshot is not None  # the engine has acquired it
            self.ring, self.ring_frame_index = self.camera_ring.snapshot, self.camera_frame_index.copy()
            self.last_visible_frame = newest_frame
        self.clock.turn_started()
        self.token_ids += token_ids
        self.sampler.add_prompt(self.token_ids)
        first_token = self.num_computed_tokens + (self.last_token_id is not None)
        for number, token_id in enumerate(token_ids):
            self._queue_token(token_id, newest_frame)
            if number == 0:
                self.turns.append(Turn(first_token, self.last_temporal_index))

    def append_token(
        self, token_id: int, logprobs: TokenLogprobs | None = None, *, window_full: bool
    ) -> GeneratedToken:
        """Append the token that a step generated; `window_full`: there is no room for another one."""
        frame = self.newest_visible_frame()
        self.num_computed_tokens += 1
        self.last_token_id, self.last_temporal_index = token_id, self.clock.token_made()
        self._record_token(token_id)
        if token_id in self.options.stop_ids:
            self.end_turn("stop")
        elif window_full or self.num_generated >= self.options.max_tokens:
            self.end_turn("length")
        return GeneratedToken(
            self.dialog_id,
            token_id,
            None if frame is None else frame.frame_id,
            None if frame is None else frame.captured_s,
            self.last_temporal_index,
            self.finish_reason,
            logprobs,
        )

    def end_turn(self, reason: Literal["stop", "length"]) -> None:
        """End the turn in progress."""
        self.finish_reason = self.finish_reason or reason
        self.clock.turn_ended()

    def mark_computed(self, num_tokens: int) -> None:
        """The first `num_tokens` pending tokens are in the text cache now."""
        self.num_computed_tokens += num_tokens
        del self.pending_tokens[:num_tokens]

    @property
    def input_token_id(self) -> int:
        """The token that the next step reads."""
        assert self.last_token_id is not None
        return self.last_token_id

    # Frames

    def see_camera(self) -> None:
        """See the camera's ring, not a snapshot."""
        self.ring, self.ring_frame_index = self.camera_ring, self.camera_frame_index
        self.last_visible_frame = None

    @property
    def sees_whole_ring(self) -> bool:
        """Whether the next token sees every slot of a full ring."""
        num_frames = self.options.num_frames
        return self.ring.is_full and (num_frames is None or num_frames >= self.ring.capacity)

    def visible_slots(self, newest_frame: int) -> list[bool]:
        """By slot of `ring`: true for the newest `num_frames` frames up to number `newest_frame`."""
        last = newest_frame if self.last_visible_frame is None else min(newest_frame, self.last_visible_frame)
        slots = [slot for slot, frame in self.ring.in_order() if frame.number <= last]
        visible = set(slots[-(self.options.num_frames or self.ring.capacity) :])
        return [slot in visible for slot in range(self.ring.capacity)]

    def newest_visible_frame(self) -> RingFrame | None:
        """The newest frame that the next token sees."""
        last, newest = self.last_visible_frame, self.ring.newest
        if last is None or (newest is not None and newest.number <= last):
            return newest
        frames = [frame for _, frame in self.ring.in_order() if frame.number <= last]
        return frames[-1] if frames else None

    # Text

    @property
    def num_cached_tokens(self) -> int:
        """Tokens in the text cache."""
        return self.num_computed_tokens - len(self.dropped_tokens)

    def masked_tokens(self, start: int, size: int) -> npt.NDArray[np.bool_]:
        """Of `size` positions of the text from `start` on: true for those that are dropped or not computed yet."""
        position, dropped = np.arange(start, start + size), self.dropped_tokens
        return (position >= self.num_computed_tokens) | (
            (position >= dropped.start) & (position < dropped.stop)
        )

    def drop_oldest_turn(self, page_tokens: int) -> list[int] | None:
        """Drop the oldest turn; returns the pages that are empty now. None: there is only one turn."""
        if len(self.turns) < 2:
            return None
        del self.turns[0]
        first = self.num_pinned_tokens
        if self.dropped_tokens.stop:
            first = max(first, self.dropped_tokens.start)
        self.dropped_tokens = range(first, max(self.turns[0].first_token, first))
        freed: list[int] = []
        for number in range(-(-first // page_tokens), self.dropped_tokens.stop // page_tokens):
            if self.pages[number] >= 0:
                freed.append(self.pages[number])
                self.pages[number] = -1
        return freed

    def _add_frames(self, frames: Sequence[tuple[int, RingFrame]]) -> None:
        for slot, _ in frames:
            self.camera_frame_index[slot] = self.clock.frame_arrived()

    def _record_token(self, token_id: int) -> None:
        self.token_ids.append(token_id)
        self.sampler.add_token(token_id)
        self.num_generated += 1

    def _queue_token(self, token_id: int, newest_frame: int) -> None:
        """Append a token that is given, not generated. The one before it becomes a pending token."""
        if self.last_token_id is not None:
            self.pending_tokens.append(
                PendingToken(self.last_token_id, self.last_temporal_index, newest_frame)
            )
        self.last_token_id, self.last_temporal_index = token_id, self.clock.token_made()
