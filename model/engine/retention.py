"""Which frame makes way when a camera's ring is full (paper, section 2.1: the oldest; or thinner with age)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, slots=True)
class Tier:
    """Of frames older than those of the tiers before: this many, at most one every `every_s` seconds."""

    num_frames: int
    every_s: float


class Retention:
    """One rate (no tiers): a FIFO. Several: the newest frames all, older ones thinner, in the same ring.

    A tier keeps the first frame of each span of `every_s` seconds on the camera's own clock, so what is kept of the
    past does not depend on when it is looked at.
    """

    def __init__(self, capacity: int, tiers: Sequence[Tier] = ()) -> None:
        """`tiers` come after the newest frames, which have what is left of `capacity`. Raises ValueError."""
        self.capacity, self.tiers = capacity, tuple(tiers)
        self.num_dense = capacity - sum(tier.num_frames for tier in tiers)
        if self.num_dense < 1 or any(tier.num_frames < 1 or tier.every_s <= 0 for tier in tiers):
            raise ValueError(f"tiers: got {tiers}, wanted fewer than {capacity} frames in all, and positive")
        if any(old.every_s <= new.every_s for new, old in pairwise(tiers)):
            raise ValueError(f"tiers: got {tiers}, wanted each one thinner than the one before")

    @staticmethod
    def parse(text: str, capacity: int) -> Retention:
        """`10@1,6@10`: after the newest, 10 frames a second apart, then 6 ten seconds apart. Empty: one rate."""
        tiers: list[Tier] = []
        for part in filter(None, text.split(",")):
            count, separator, every_s = part.strip().partition("@")
            try:
                tiers.append(Tier(int(count), float(every_s)))
            except ValueError as error:
                raise ValueError(f"got {text!r}, wanted frames@seconds,...: {part!r} is none") from error
            if not separator:
                raise ValueError(f"got {text!r}, wanted frames@seconds,...: {part!r} is none")
        return Retention(capacity, tiers)

    def frame_to_evict(self, times: Sequence[float]) -> int:
        """Which of a full ring's frames makes way for the next one: a position in `times`, oldest first.

        A frame that leaves the newest ones is given up if an older one of its span is kept already; else it pushes
        its tier's oldest on to the next, thinner tier, where the same is asked. From the last tier the oldest goes.
        """
        end = len(times) - self.num_dense + 1  # the frames before this one are no longer among the newest
        for tier in self.tiers:
            first = end - tier.num_frames
            for position in range(end - 1, max(first, 1) - 1, -1):
                if times[position] // tier.every_s == times[position - 1] // tier.every_s:
                    return position
            end = first
        return 0

    def visible(self, frame_times: Sequence[float] | npt.NDArray[np.floating]) -> npt.NDArray[np.bool_]:
        """For training: bool [N + 1, N]; row n tells which of the first n frames the ring holds after n have come."""
        held: list[int] = []
        rows = np.zeros((len(frame_times) + 1, len(frame_times)), np.bool_)
        for number in range(len(frame_times)):
            if len(held) == self.capacity:
                del held[self.frame_to_evict([float(frame_times[each]) for each in held])]
            held.append(number)
            rows[number + 1, held] = True
        return rows
