"""What a publisher has sent so far."""

from __future__ import annotations

import time
from dataclasses import dataclass


@dataclass(slots=True)
class Progress:
    """Counts since the start."""

    num_frames: int = 0
    num_bytes: int = 0
    num_refused: int = 0  # packets too large for readers
    num_dropped: int = 0  # packets that the broker did not take in time
    started_at: float = 0.0  # monotonic

    def line(self, camera: str) -> str:
        """One line for the terminal."""
        elapsed_s = max(1e-3, time.monotonic() - self.started_at)
        lost = self.num_dropped + self.num_refused
        return (
            f"{camera}: {self.num_frames} frames, {self.num_frames / elapsed_s:.1f} fps, "
            f"{self.num_bytes / 2**20:.1f} MB, {lost} dropped"
        )
