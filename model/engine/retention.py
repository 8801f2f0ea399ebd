"""Which frame a full ring evicts: the oldest (paper, section 2.1), or with several rates the one that is spare."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, slots=True)
class Tier:
    """Frames older than those of the previous tiers: how many, and the seconds from one to the next."""

    num_frames: int
    every_s: float


class Retention:
    """Without tiers a ring is a FIFO. With tiers it keeps all of the newest frames and fewer of the older ones.

    A tier keeps the first frame of each interval of `every_s` seconds on the camera's own clock. So the frames that
    are kept do not depend on when a dialog sees them.
    """

    def __init__(self, capacity: int, tiers: Sequence[Tier] = ()) -> None:
        """The newest frames get the slots that `tiers` leave of `capacity`. Raises ValueError for wrong tiers."""
        self.capacity, self.tiers = capacity, tuple(tiers)
        self.num_dense = capacity - sum(tier.num_frames for tier in tiers)
        if self.num_dense < 1 or any(tier.num_frames < 1 or tier.every_s <= 0 for tier in tiers):
            raise ValueError(f"tiers: got {tiers}, wanted fewer than {capacity} frames in all, and positive")
        if any(old.every_s <= new.every_s for new, old in pairwise(tiers)):
            raise ValueError(f"tiers: got {tiers}, wanted each one thinner than the one before")

    @staticmethod
    def parse(text: str, capacity: int) -> Retention:
        """`10@1,6@10`: after the newest frames 10 that are 1 s apart, then 6 that are 10 s apart. Empty: no tiers."""
        tiers: list[Tier] = []
        for part in filter(None, text.split(",")):
            try:
                count, every_s = part.split("@")
                tiers.append(Tier(int(count), float(every_s)))
            except ValueError as error:
                raise ValueError(
                    f"got {text!r}, wanted frames@seconds,...; {part!r} is not of this form"
                ) from error
        return Retention(capacity, tiers)

    def frame_to_evict(self, times: Sequence[float]) -> int:
        """The frame that a full ring evicts for the next one: a position in `times`, oldest first.

        A frame that is no longer among the newest is evicted if its interval has an older frame. Otherwise it stays,
        and its tier's oldest frame moves to the next tier, where the same rule holds. The last tier evicts its oldest.
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
        """For training: bool [N + 1, N]; row n is true for the frames that the ring holds after n have arrived."""
        held: list[int] = []
        rows = np.zeros((len(frame_times) + 1, len(frame_times)), np.bool_)
        for number in range(len(frame_times)):
            if len(held) == self.capacity:
                del held[self.frame_to_evict([float(frame_times[each]) for each in held])]
            held.append(number)
            rows[number + 1, held] = True
        return rows
