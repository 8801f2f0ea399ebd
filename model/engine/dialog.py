"""One dialog as the engine keeps it: its options, its clock, where each frame stands on that clock, and its text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from model.engine.sampling import Sampling, Voice
from model.network.clock import Clock
from model.runtime.kv_cache import FrameRing, SeenFrame

Indices = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Options(Sampling):
    """How a dialog watches and speaks; raises ValueError for a value that makes no sense."""

    visual_context: Literal["live", "frozen"] = "live"  # frozen: only what was visible at the question
    num_frames: int | None = None  # newest frames to see; None: all that the ring holds
    max_tokens: int = 256  # of one turn
    stop_ids: frozenset[int] = frozenset()

    def __post_init__(self) -> None:
        Sampling.__post_init__(self)
        if self.visual_context not in ("live", "frozen"):
            raise ValueError(f"visual_context: got {self.visual_context!r}, wanted 'live' or 'frozen'")
        if self.num_frames is not None and self.num_frames < 1:
            raise ValueError(f"num_frames: got {self.num_frames}, wanted at least 1")
        if self.max_tokens < 1:
            raise ValueError(f"max_tokens: got {self.max_tokens}, wanted at least 1")


class Spoken(NamedTuple):
    """A token that another engine already made for this turn."""

    token_id: int
    made_s: float  # on the cameras' clock


class Unread(NamedTuple):
    """A token that no forward has read yet."""

    token_id: int
    place: int  # temporal index on the dialog's clock
    newest: int  # number of the newest frame that the token made from it sees; -1: none


class Turn(NamedTuple):
    """Where a turn begins: which token of the text, and when on the dialog's clock."""

    token: int
    place: int


@dataclass(slots=True, eq=False)
class Dialog:
    """State of one dialog."""

    dialog_id: str
    camera: str
    options: Options
    live: FrameRing  # the camera's ring
    voice: Voice
    num_kept: int = 0  # first tokens that are never dropped
    clock: Clock = field(default_factory=Clock)
    frame_index: Indices = field(init=False)  # by slot of `live`: indices on this clock
    # What the dialog looks at: `live` itself, or what `live` was when the question came.
    ring: FrameRing = field(init=False)
    ring_index: Indices = field(init=False)
    until: int | None = None  # frozen: number of the newest frame at the question
    # Its text, as it lies in the text store.
    pages: list[int] = field(default_factory=list[int])  # -1: given back, all of its tokens were dropped
    length: int = 0  # tokens read so far, those that were dropped included
    hole: tuple[int, int] = (
        0,
        0,
    )  # tokens that were dropped: the first of them, and the first one after them
    turns: list[Turn] = field(default_factory=list[Turn])
    token_ids: list[int] = field(default_factory=list[int])  # all that was heard and said
    unread: list[Unread] = field(default_factory=list[Unread])  # of a prompt that is not read to its end
    pending: int | None = None  # the newest token: reading it makes the next one
    pending_index: int = 0
    num_made: int = 0  # tokens of the turn in progress
    finished: Literal["stop", "length"] | None = None

    def __post_init__(self) -> None:
        self.frame_index = np.zeros(self.live.capacity, np.int64)
        self.ring, self.ring_index = self.live, self.frame_index

    # Hearing and speaking

    def hear(self, token_ids: Sequence[int], spoken: Sequence[Spoken] = (), asked_s: float = 0.0) -> None:
        """The first turn: frames in the ring arrive, then a question.

        With `spoken`, an answer is taken up again: frames captured after `asked_s` arrive between its tokens, as
        they did then.
        """
        frames = self.live.in_order()
        num_before = len(frames)
        if spoken:
            num_before = sum(frame.captured_s <= asked_s for _, frame in frames)
        self._arrive(frames[:num_before])
        self.ask(token_ids, frames[num_before - 1][1].number if num_before else -1)
        waiting = frames[num_before:]
        for token in spoken:
            arrived = sum(frame.captured_s <= token.made_s for _, frame in waiting)
            self._arrive(waiting[:arrived])
            waiting = waiting[arrived:]
            before = len(frames) - len(waiting)
            self._follow(token.token_id, frames[before - 1][1].number if before else -1)
            self._said(token.token_id)
        self._arrive(waiting)

    def ask(self, token_ids: Sequence[int], newest: int) -> None:
        """A turn starts now; `newest` is the number of the newest frame."""
        self.num_made, self.finished = 0, None
        self.ring, self.ring_index, self.until = self.live, self.frame_index, None
        if self.options.visual_context == "frozen":
            assert self.live.snapshot is not None  # the engine made it
            self.ring, self.ring_index, self.until = self.live.snapshot, self.frame_index.copy(), newest
        self.clock.turn_started()
        self.token_ids += token_ids
        self.voice.hear(self.token_ids)
        first = self.length + (self.pending is not None)
        for number, token_id in enumerate(token_ids):
            self._follow(token_id, newest)
            if number == 0:
                self.turns.append(Turn(first, self.pending_index))

    def say(self, token_id: int, *, full: bool) -> None:
        """A token was made from the pending one, which has been read; `full`: there is no room for another."""
        self.length += 1
        self.pending, self.pending_index = token_id, self.clock.token_made()
        self._said(token_id)
        if token_id in self.options.stop_ids:
            self.end("stop")
        elif full or self.num_made >= self.options.max_tokens:
            self.end("length")

    def end(self, reason: Literal["stop", "length"]) -> None:
        """The turn is over."""
        self.finished = self.finished or reason
        self.clock.turn_ended()

    def read(self, num_tokens: int) -> None:
        """So many of the unread tokens lie in the text store now."""
        self.length += num_tokens
        del self.unread[:num_tokens]

    @property
    def next_input(self) -> int:
        """The token that the next step reads."""
        assert self.pending is not None
        return self.pending

    # Looking

    @property
    def sees_all(self) -> bool:
        """Whether the next token sees every slot of a full ring."""
        num_frames = self.options.num_frames
        return self.ring.full and (num_frames is None or num_frames >= self.ring.capacity)

    def visible(self, newest: int) -> list[bool]:
        """By slot of `ring`: the newest `num_frames` frames up to number `newest`."""
        last = newest if self.until is None else min(newest, self.until)
        slots = [slot for slot, frame in self.ring.in_order() if frame.number <= last]
        seen = set(slots[-(self.options.num_frames or self.ring.capacity) :])
        return [slot in seen for slot in range(self.ring.capacity)]

    def newest(self) -> SeenFrame | None:
        """The newest frame that the next token can see."""
        if self.until is None or (self.ring.newest and self.ring.newest.number <= self.until):
            return self.ring.newest
        frames = [frame for _, frame in self.ring.in_order() if frame.number <= self.until]
        return frames[-1] if frames else None

    # Text

    @property
    def num_held(self) -> int:
        """Tokens that lie in the text store."""
        return self.length - (self.hole[1] - self.hole[0])

    def hidden(self, start: int, size: int) -> npt.NDArray[np.bool_]:
        """Which of these places of the text hold nothing that may be read: dropped, or not read yet."""
        place = np.arange(start, start + size)
        first, end = self.hole
        return (place >= self.length) | ((place >= first) & (place < end))

    def drop_turn(self, page_tokens: int) -> list[int] | None:
        """Forget the oldest turn; returns the pages that hold nothing any more. None: there is only one turn."""
        if len(self.turns) < 2:
            return None
        del self.turns[0]
        first = max(self.num_kept, self.hole[0]) if self.hole[1] else self.num_kept
        self.hole = (first, max(self.turns[0].token, first))
        freed: list[int] = []
        for at in range(-(-first // page_tokens), self.hole[1] // page_tokens):
            if self.pages[at] >= 0:
                freed.append(self.pages[at])
                self.pages[at] = -1
        return freed

    def _arrive(self, frames: Sequence[tuple[int, SeenFrame]]) -> None:
        for slot, _ in frames:
            self.frame_index[slot] = self.clock.frame_arrived()

    def _said(self, token_id: int) -> None:
        self.token_ids.append(token_id)
        self.voice.say(token_id)
        self.num_made += 1

    def _follow(self, token_id: int, newest: int) -> None:
        """A token comes after the pending one, which may be read now: what it makes sees frames up to `newest`."""
        if self.pending is not None:
            self.unread.append(Unread(self.pending, self.pending_index, newest))
        self.pending, self.pending_index = token_id, self.clock.token_made()
