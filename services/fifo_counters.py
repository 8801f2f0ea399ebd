"""What a FrameFifo counts, and the metrics it tells, when somebody wants them."""

from __future__ import annotations

import threading
from collections import Counter
from dataclasses import dataclass, field, replace
from typing import Protocol


class FifoMetrics(Protocol):
    """Where counts go as they happen; called from any thread."""

    def packets_read(self, camera: str, count: int) -> None: ...

    def packet_skipped(self, camera: str, reason: str) -> None: ...

    def frame_stored(self, camera: str, age_s: float) -> None: ...

    def frame_dropped(self, camera: str, reason: str) -> None: ...

    def dead_letter(self, reason: str) -> None: ...

    def lag(self, num_records: int) -> None: ...


@dataclass(slots=True)
class Counters:
    """Counts since the start.

    Every packet read is decoded, skipped or a dead letter; every frame sampled is stored, dropped or still pending.
    """

    packets_read: int = 0
    frames_sampled: int = 0
    frames_stored: int = 0
    packets_skipped: Counter[tuple[str, str]] = field(
        default_factory=lambda: Counter[tuple[str, str]]()
    )  # camera, reason
    frames_dropped: Counter[tuple[str, str]] = field(
        default_factory=lambda: Counter[tuple[str, str]]()
    )  # camera, reason
    dead_letters: Counter[str] = field(default_factory=Counter)  # reason
    lag: int = 0  # records written but not yet read
    num_cameras: int = 0


class Tally:
    """Thread-safe counting, passed on to metrics."""

    def __init__(self, metrics: FifoMetrics | None = None) -> None:
        self._lock = threading.Lock()
        self._counters = Counters()
        self._metrics = metrics

    def read(self, camera: str) -> None:
        """A packet of a camera was read."""
        with self._lock:
            self._counters.packets_read += 1
        if self._metrics is not None:
            self._metrics.packets_read(camera, 1)

    def skipped(self, camera: str, reason: str) -> None:
        """A packet was not decoded, or in vain."""
        with self._lock:
            self._counters.packets_skipped[camera, reason] += 1
        if self._metrics is not None:
            self._metrics.packet_skipped(camera, reason)

    def sampled(self) -> None:
        """A frame is to be encoded."""
        with self._lock:
            self._counters.frames_sampled += 1

    def stored(self, camera: str, age_s: float) -> None:
        """A frame is in the FIFO, so long after it was captured."""
        with self._lock:
            self._counters.frames_stored += 1
        if self._metrics is not None:
            self._metrics.frame_stored(camera, age_s)

    def dropped(self, camera: str, reason: str) -> None:
        """A sampled frame was lost."""
        with self._lock:
            self._counters.frames_dropped[camera, reason] += 1
        if self._metrics is not None:
            self._metrics.frame_dropped(camera, reason)

    def dead_letter(self, reason: str) -> int:
        """A packet went to the dead letters, the so-manieth of its kind."""
        with self._lock:
            self._counters.dead_letters[reason] += 1
            count = self._counters.dead_letters[reason]
        if self._metrics is not None:
            self._metrics.dead_letter(reason)
        return count

    def standing(self, *, lag: int, num_cameras: int) -> None:
        """How far behind the reader is, and how many cameras it follows."""
        with self._lock:
            self._counters.lag = lag
            self._counters.num_cameras = num_cameras
        if self._metrics is not None:
            self._metrics.lag(lag)

    def snapshot(self) -> Counters:
        """The counts now."""
        with self._lock:
            now = self._counters
            return replace(
                now,
                packets_skipped=Counter(now.packets_skipped),
                frames_dropped=Counter(now.frames_dropped),
                dead_letters=Counter(now.dead_letters),
            )
