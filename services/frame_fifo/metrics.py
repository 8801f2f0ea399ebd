"""What a FrameFifo counts, and tells to its recorder."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace

from services.adapters.prometheus_recorder import PrometheusRecorder
from services.ports.metric_catalogue import (
    CAMERA_UP,
    CAPTURE_SKEW,
    DEAD_LETTERS,
    FIFO_BYTES,
    FIFO_CAPACITY,
    FIFO_ENTRIES,
    FIFO_LIMIT_BYTES,
    FRAME_AGE_AT_STORE,
    FRAMES_DROPPED,
    FRAMES_INGESTED,
    LAG,
    NEWEST_FRAME,
    PACKETS_READ,
    PACKETS_SKIPPED,
)
from services.ports.recorder import MetricsRecorder

STANDING_EVERY_S = 1.0
SKIPS = ("late", "no_keyframe", "lost_packet", "damaged", "repeated")
DROPS = {
    "late": "read",
    "overtaken": "encode",
    "encoder_failed": "encode",
    "store_lost": "store",
    "replayed": "store",
}  # the stage


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
    """Thread-safe counting, passed on to the recorder."""

    def __init__(self, recorder: MetricsRecorder | None = None) -> None:
        self._lock = threading.Lock()
        self._counters = Counters()
        self._recorder: MetricsRecorder = recorder or PrometheusRecorder("frame_fifo")
        self._told_at = float("-inf")  # monotonic
        self._read: set[str] = set()
        self._up: set[str] = set()
        self._filled: set[str] = set()

    def read(self, camera: str) -> None:
        """A packet of a camera was read."""
        with self._lock:
            self._counters.packets_read += 1
            new = camera not in self._read
            self._read.add(camera)
        if new:
            for reason in SKIPS:
                self._recorder.count(PACKETS_SKIPPED, camera, reason, by=0.0)
            for reason in DROPS:  # so that the first drop is a rise
                self._recorder.count(FRAMES_DROPPED, camera, DROPS[reason], reason, by=0.0)
        self._recorder.count(PACKETS_READ, camera)

    def skewed(self, camera: str, skew_s: float) -> None:
        """A packet's capture time, less our own clock."""
        self._recorder.set(CAPTURE_SKEW, skew_s, camera)

    def skipped(self, camera: str, reason: str) -> None:
        """A packet was not decoded, or in vain."""
        with self._lock:
            self._counters.packets_skipped[camera, reason] += 1
        self._recorder.count(PACKETS_SKIPPED, camera, reason)

    def sampled(self) -> None:
        """A frame is to be encoded."""
        with self._lock:
            self._counters.frames_sampled += 1

    def stored(self, camera: str, captured_s: float) -> None:
        """A frame captured then is in the FIFO."""
        with self._lock:
            self._counters.frames_stored += 1
        self._recorder.count(FRAMES_INGESTED, camera)
        self._recorder.observe(FRAME_AGE_AT_STORE, max(0.0, time.time() - captured_s))
        self._recorder.set(NEWEST_FRAME, captured_s, camera)

    def dropped(self, camera: str, reason: str) -> None:
        """A sampled frame was lost."""
        with self._lock:
            self._counters.frames_dropped[camera, reason] += 1
        self._recorder.count(FRAMES_DROPPED, camera, DROPS[reason], reason)

    def dead_letter(self, reason: str) -> int:
        """A packet went to the dead letters, the so-manieth of its kind."""
        with self._lock:
            self._counters.dead_letters[reason] += 1
            count = self._counters.dead_letters[reason]
        self._recorder.count(DEAD_LETTERS, reason)
        return count

    def standing(self, *, lag: int, num_cameras: int, up: Collection[str]) -> None:
        """How far behind the reader is, how many cameras it follows, and whose packets come; told now and then."""
        with self._lock:
            self._counters.lag = lag
            self._counters.num_cameras = num_cameras
        if time.monotonic() - self._told_at < STANDING_EVERY_S:
            return
        self._told_at = time.monotonic()
        self._recorder.set(LAG, lag)
        self._up |= set(up)
        for camera in self._up:
            self._recorder.set(CAMERA_UP, float(camera in up), camera)

    def filled(self, entries: Mapping[str, int], capacity: int, used_bytes: int, limit_bytes: int) -> None:
        """How full the FIFOs of all cameras are, and the store."""
        for camera in self._filled | entries.keys():
            self._recorder.set(FIFO_ENTRIES, entries.get(camera, 0), camera)
        self._filled = set(entries)
        self._recorder.set(FIFO_CAPACITY, capacity)
        self._recorder.set(FIFO_BYTES, used_bytes)
        self._recorder.set(FIFO_LIMIT_BYTES, limit_bytes)

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
