"""Chooses which frames of a camera are encoded."""

from __future__ import annotations

import math
from dataclasses import dataclass

JITTER = 0.1  # of a period: a frame early by less is on time; else a 5 FPS camera would give 4 of 5 frames


@dataclass(slots=True)
class FrameSampler:
    """Samples frames by their capture times: on average exactly `frames_per_second`, and none twice."""

    frames_per_second: float
    due_s: float | None = None  # capture time of the next frame

    def accepts(self, captured_s: float) -> bool:
        """Whether the frame captured then is to be encoded."""
        period_s = 1 / self.frames_per_second
        early_s = JITTER * period_s
        if self.due_s is None:
            self.due_s = captured_s + period_s
            return True
        late_s = captured_s - (self.due_s - early_s)
        if late_s < 0:
            return False
        # The next time on a fixed grid: a gap is not made up for, and rounding errors do not add up.
        self.due_s += period_s * (math.floor(late_s / period_s) + 1)
        return True
