"""The sampled frames of all cameras that wait to be encoded."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable

from services.video.sampled_frame import SampledFrame

MAX_FRAMES = 2  # per camera: the next one to encode, and a newer one

CameraFrame = tuple[str, SampledFrame]  # camera, frame


class PendingFrames:
    """A short queue for each camera. Thread-safe. A camera in a batch is busy until `release`: order is kept."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._queues: dict[str, deque[SampledFrame]] = {}
        self._busy: set[str] = set()

    def put(self, camera: str, frame: SampledFrame) -> bool:
        """Add the newest frame of a camera; True: its oldest pending frame was dropped instead."""
        with self._lock:
            queue = self._queues.setdefault(camera, deque())
            queue.append(frame)
            if len(queue) <= MAX_FRAMES:
                return False
            queue.popleft()
            return True

    def take_batch(self, max_frames: int, oldest_s: float) -> tuple[list[CameraFrame], list[str]]:
        """Frames of cameras that are not busy, and the camera of each frame that was dropped.

        A frame captured before `oldest_s` is dropped when a newer one of its camera is pending.
        """
        batch: list[CameraFrame] = []
        dropped: list[str] = []
        with self._lock:
            for camera in [camera for camera in self._queues if camera not in self._busy]:
                queue = self._queues[camera]
                while queue and len(batch) < max_frames:
                    frame = queue.popleft()
                    if queue and frame.captured_s < oldest_s:
                        dropped.append(camera)
                    else:
                        batch.append((camera, frame))
                if not queue:
                    del self._queues[camera]  # added again at the end: every camera gets its turn
            self._busy |= {camera for camera, _ in batch}
        return batch, dropped

    def release(self, cameras: Iterable[str]) -> None:
        """The frames of these cameras are stored: their next ones may be taken."""
        with self._lock:
            self._busy.difference_update(cameras)
