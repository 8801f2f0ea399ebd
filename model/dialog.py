"""One dialog as the engine keeps it: its options, its clock, and where each frame stands on that clock."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from model.cache import FrameRing, SeenFrame
from model.clock import Clock


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How a dialog watches and speaks; raises ValueError for a value that makes no sense."""

    visual_context: Literal["live", "frozen"] = "live"  # frozen: only what was visible at the question
    num_frames: int | None = None  # newest frames to see; None: all that the ring holds
    max_tokens: int = 256  # of one turn
    temperature: float = 0.0  # 0: the likeliest token
    top_p: float = 1.0
    seed: int | None = None  # None: a new one for each dialog
    stop_ids: frozenset[int] = frozenset()

    def __post_init__(self) -> None:
        if self.visual_context not in ("live", "frozen"):
            raise ValueError(f"visual_context: got {self.visual_context!r}, wanted 'live' or 'frozen'")
        if self.num_frames is not None and self.num_frames < 1:
            raise ValueError(f"num_frames: got {self.num_frames}, wanted at least 1")
        if self.max_tokens < 1:
            raise ValueError(f"max_tokens: got {self.max_tokens}, wanted at least 1")
        if not 0.0 <= self.temperature <= 100.0:
            raise ValueError(f"temperature: got {self.temperature}, wanted 0 to 100")
        if not 0.0 < self.top_p <= 1.0:
            raise ValueError(f"top_p: got {self.top_p}, wanted more than 0 and at most 1")


class Spoken(NamedTuple):
    """A token that another engine already made for this turn."""

    token_id: int
    made_s: float  # on the cameras' clock


class Unread(NamedTuple):
    """A token that no forward has read yet."""

    token_id: int
    place: int  # temporal index on the dialog's clock
    newest: int  # number of the newest frame that the token made from it sees; -1: none


@dataclass(slots=True)
class Dialog:
    """State of one dialog."""

    dialog_id: str
    camera: str
    options: Options
    slot: int  # in the text cache
    live: FrameRing  # the camera's ring
    seed: int
    clock: Clock = field(default_factory=Clock)
    frame_index: list[int] = field(default_factory=list[int])  # by slot of `live`: indices on this clock
    # What the dialog looks at: `live` itself, or what `live` was when the question came.
    ring: FrameRing = field(init=False)
    ring_index: list[int] = field(init=False)
    until: int | None = None  # frozen: number of the newest frame at the question
    pending: int | None = None  # the newest token: reading it makes the next one
    pending_index: int = 0
    num_made: int = 0  # tokens of the turn in progress
    finished: Literal["stop", "length"] | None = None

    def __post_init__(self) -> None:
        self.frame_index = [0] * self.live.capacity
        self.ring, self.ring_index = self.live, self.frame_index

    def hear(
        self, token_ids: Sequence[int], spoken: Sequence[Spoken] = (), asked_s: float = 0.0
    ) -> list[Unread]:
        """The first turn: frames in the ring arrive, then a question; returns what is to be read before a step.

        With `spoken`, an answer is taken up again: frames captured after `asked_s` arrive between its tokens, as
        they did then.
        """
        frames = self.live.in_order()
        num_before = len(frames)
        if spoken:
            num_before = sum(frame.captured_s <= asked_s for _, frame in frames)
        self._arrive(frames[:num_before])
        unread = self.ask(token_ids, frames[num_before - 1][1].number if num_before else -1)
        waiting = frames[num_before:]
        for token in spoken:
            arrived = sum(frame.captured_s <= token.made_s for _, frame in waiting)
            self._arrive(waiting[:arrived])
            waiting = waiting[arrived:]
            before = len(frames) - len(waiting)
            unread += self._follow(token.token_id, frames[before - 1][1].number if before else -1)
            self.num_made += 1
        self._arrive(waiting)
        return unread

    def ask(self, token_ids: Sequence[int], newest: int) -> list[Unread]:
        """A turn starts now; `newest` is the number of the newest frame."""
        self.num_made, self.finished = 0, None
        if self.options.visual_context == "frozen":
            self.ring, self.ring_index, self.until = self.live.snapshot(), list(self.frame_index), newest
        self.clock.turn_started()
        return [unread for token_id in token_ids for unread in self._follow(token_id, newest)]

    def say(self, token_id: int, *, full: bool) -> None:
        """A token was made; `full`: there is no room for another."""
        self._follow(token_id, -1)
        self.num_made += 1
        if token_id in self.options.stop_ids:
            self.finished = "stop"
        elif full or self.num_made >= self.options.max_tokens:
            self.finished = "length"
        if self.finished is not None:
            self.clock.turn_ended()

    def visible(self, newest: int) -> list[bool]:
        """By slot of `ring`: the newest `num_frames` frames up to number `newest`."""
        last = newest if self.until is None else min(newest, self.until)
        first = max(last - (self.options.num_frames or self.ring.capacity) + 1, 0)
        return [frame is not None and first <= frame.number <= last for frame in self.ring.frames]

    def newest(self) -> SeenFrame | None:
        """The newest frame that the next token can see."""
        if self.until is None:
            return self.ring.newest
        frame = self.ring.frames[self.until % self.ring.capacity]
        return frame if frame is not None and frame.number == self.until else None

    def draw(self, logits: Tensor) -> int:
        """The next token from logits [vocabulary]; the same seed and position always draw the same."""
        chances, order = (
            (logits.float() / self.options.temperature).softmax(-1).sort(descending=True, stable=True)
        )
        before = chances.cumsum(-1) - chances
        kept = torch.where(before < self.options.top_p, chances, 0.0).cumsum(-1)
        place = random.Random(f"{self.seed}/{self.num_made}").random() * kept[-1]
        return int(order[torch.searchsorted(kept, place, right=True).clamp(max=len(order) - 1)])

    def _arrive(self, frames: Sequence[tuple[int, SeenFrame]]) -> None:
        for slot, _ in frames:
            self.frame_index[slot] = self.clock.frame_arrived()

    def _follow(self, token_id: int, newest: int) -> list[Unread]:
        """A token comes after the pending one, which may be read now: what it makes sees frames up to `newest`."""
        unread = [] if self.pending is None else [Unread(self.pending, self.pending_index, newest)]
        self.pending, self.pending_index = token_id, self.clock.token_made()
        return unread
