"""The metrics of a FrameFifo."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace

from services.ports.metric_catalogue import (
    CAMERA_UP,
    CAPTURE_SKEW,
    CAPTURE_TIME_JUMPS,
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
    READER_FAILING,
    READER_LAG,
    READER_REBUILDS,
    READER_SKIPPED,
    READER_STANDSTILL,
)
from services.ports.recorder import MetricsRecorder
from services.ports.video_log import ReaderStatus

UPDATE_EVERY_S = 1.0
SKIP_REASONS = ("late", "no_keyframe", "lost_packet", "damaged", "too_large", "repeated")
DROP_STAGES = {  # by reason
    "late": "read",
    "overtaken": "encode",
    "encoder_failed": "encode",
    "store_lost": "store",
    "store_full": "store",
    "replayed": "store",
}


@dataclass(slots=True)
class FrameFifoCounts:
    """Counts since the start.

    Every packet read is decoded, skipped or a dead letter. Every sampled frame is stored, dropped or pending.
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


class FrameFifoMetrics:
    """Counts, and reports to a recorder. Thread-safe."""

    def __init__(self, recorder: MetricsRecorder) -> None:
        self._lock = threading.Lock()
        self._counts = FrameFifoCounts()
        self._recorder = recorder
        self._updated_at = float("-inf")  # monotonic
        self._read: set[str] = set()
        self._up: set[str] = set()
        self._stored: set[str] = set()
        self._reader = ReaderStatus()  # as last reported

    def packet_read(self, camera: str) -> None:
        """A packet of a camera was read."""
        with self._lock:
            self._counts.packets_read += 1
            new = camera not in self._read
            self._read.add(camera)
        if new:
            self._recorder.count(CAPTURE_TIME_JUMPS, camera, by=0.0)
            for reason in SKIP_REASONS:
                self._recorder.count(PACKETS_SKIPPED, camera, reason, by=0.0)
            for reason in DROP_STAGES:  # so that an alert sees the first drop
                self._recorder.count(FRAMES_DROPPED, camera, DROP_STAGES[reason], reason, by=0.0)
        self._recorder.count(PACKETS_READ, camera)

    def capture_skew(self, camera: str, skew_s: float) -> None:
        """The capture time of a packet minus our own clock."""
        self._recorder.set(CAPTURE_SKEW, skew_s, camera)

    def time_jumped(self, camera: str) -> None:
        """A camera's clock was set back or forward."""
        self._recorder.count(CAPTURE_TIME_JUMPS, camera)

    def packet_skipped(self, camera: str, reason: str) -> None:
        """A packet was not decoded, or is damaged."""
        with self._lock:
            self._counts.packets_skipped[camera, reason] += 1
        self._recorder.count(PACKETS_SKIPPED, camera, reason)

    def frame_sampled(self) -> None:
        """A frame is to be encoded."""
        with self._lock:
            self._counts.frames_sampled += 1

    def frame_stored(self, camera: str, captured_s: float) -> None:
        """A frame was stored in the FIFO."""
        with self._lock:
            self._counts.frames_stored += 1
        self._recorder.count(FRAMES_INGESTED, camera)
        self._recorder.observe(FRAME_AGE_AT_STORE, max(0.0, time.time() - captured_s))
        self._recorder.set(NEWEST_FRAME, captured_s, camera)

    def frame_dropped(self, camera: str, reason: str) -> None:
        """A sampled frame was dropped."""
        with self._lock:
            self._counts.frames_dropped[camera, reason] += 1
        self._recorder.count(FRAMES_DROPPED, camera, DROP_STAGES[reason], reason)

    def dead_letter(self, reason: str) -> None:
        """A record could not be used."""
        with self._lock:
            self._counts.dead_letters[reason] += 1
        self._recorder.count(DEAD_LETTERS, reason)

    def update_reader(self, *, lag: int, num_cameras: int, up: Collection[str]) -> None:
        """The reader's lag, its number of cameras, and those whose packets arrive. Reported once a second."""
        with self._lock:
            self._counts.lag = lag
            self._counts.num_cameras = num_cameras
        if time.monotonic() - self._updated_at < UPDATE_EVERY_S:
            return
        self._updated_at = time.monotonic()
        self._recorder.set(LAG, lag)
        self._up |= set(up)
        for camera in self._up:
            self._recorder.set(CAMERA_UP, float(camera in up), camera)

    def update_status(self, status: ReaderStatus) -> None:
        """How the reader gets on. Thread-safe, unlike the others of the reader: it is called while it stands still."""
        with self._lock:
            last, self._reader = self._reader, status
        for reason, count in status.num_skipped.items():
            if more := count - last.num_skipped.get(reason, 0):
                self._recorder.count(READER_SKIPPED, reason, by=more)
        if more := status.num_rebuilds - last.num_rebuilds:
            self._recorder.count(READER_REBUILDS, by=more)
        self._recorder.set(READER_STANDSTILL, status.standstill_s)
        self._recorder.set(READER_FAILING, status.num_failing)
        for topic, partition in last.lag.keys() | status.lag.keys():
            lag = status.lag.get((topic, partition), 0)
            self._recorder.set(READER_LAG, lag, topic, str(partition))

    def update_store(
        self, entries: Mapping[str, int], capacity: int, used_bytes: int, limit_bytes: int
    ) -> None:
        """How full the FIFO of each camera is, and the store."""
        for camera in self._stored | entries.keys():
            self._recorder.set(FIFO_ENTRIES, entries.get(camera, 0), camera)
        self._stored = set(entries)
        self._recorder.set(FIFO_CAPACITY, capacity)
        self._recorder.set(FIFO_BYTES, used_bytes)
        self._recorder.set(FIFO_LIMIT_BYTES, limit_bytes)

    def counts(self) -> FrameFifoCounts:
        """The counts since the start."""
        with self._lock:
            now = self._counts
            return replace(
                now,
                packets_skipped=Counter(now.packets_skipped),
                frames_dropped=Counter(now.frames_dropped),
                dead_letters=Counter(now.dead_letters),
            )
