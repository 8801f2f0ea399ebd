"""The FIFO of every camera: exactly its N newest frames. The port, and a twin in memory for tests.

`services/adapters/redis_frame_store.py` is the store that runs; one contract suite holds both to the same behaviour.
"""

from __future__ import annotations

import re
import threading
import time
from collections import deque
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from services.messages.video import CameraState, Frame

BEFORE_ALL = "0-0"  # older than every frame id
PRIVATE_PREFIX = "clip-"  # cameras of clips that came with a question: never listed


class StoreLost(ConnectionError):
    """The store cannot be reached or takes nothing more. It may be back at the next call."""


class FrameStore(Protocol):
    """Thread-safe and blocking: call it from a thread. Every method may raise StoreLost."""

    def append(self, frame: Frame, *, capacity: int) -> bool:
        """Add the newest frame and keep `capacity`; False: refused, its id is not newer (a replay)."""
        ...

    def newest(self, camera: str, count: int) -> list[Frame]:
        """The newest `count` frames, oldest first."""
        ...

    def newer(self, after: Mapping[str, str], *, block_s: float) -> list[Frame]:
        """All frames newer than each camera's given id, a camera's oldest first.

        Waits at most `block_s` for the first one.
        """
        ...

    def frame(self, camera: str, frame_id: str) -> Frame | None:
        """That very frame; None when it is gone or never was."""
        ...

    def newest_frame(self, camera: str) -> Frame | None: ...

    def cameras(self) -> list[CameraState]:
        """All cameras with frames by name, but no private ones. Cheap: no frame is read."""
        ...

    def expire(self, camera: str, after_s: float) -> None:
        """Forget the camera `after_s` from now, unless called again before."""
        ...

    def announce(self, cameras: Collection[str], for_s: float) -> None:
        """Note for a while that these cameras send, whether or not a frame has come of it yet."""
        ...

    def is_announced(self, camera: str) -> bool:
        """Whether it was announced and the while is not over."""
        ...

    def memory(self) -> tuple[int, int]:
        """Bytes in use, and bytes that may be used at most (0: no limit)."""
        ...

    def ping(self) -> None: ...

    def close(self) -> None: ...


def is_private(camera: str) -> bool:
    """Whether it is a clip's own FIFO and not a camera."""
    return camera.startswith(PRIVATE_PREFIX)


def parse_frame_id(frame_id: str) -> tuple[int, int]:
    """(milliseconds, sequence), which order frames; raises ValueError for anything else."""
    found = re.fullmatch(r"(\d{1,19})-(\d{1,19})", frame_id, re.ASCII)
    if not found or max(parts := (int(found[1]), int(found[2]))) >= 2**63:
        raise ValueError(f"frame id: got {frame_id!r}, wanted '<milliseconds>-<sequence>'")
    return parts


def fps(captured_s: tuple[float, float], num_frames: int) -> float:
    """Frames per second of a FIFO whose oldest and newest frame were captured at those times."""
    span_s = captured_s[1] - captured_s[0]
    return (num_frames - 1) / span_s if num_frames > 1 and span_s > 0 else 0.0


@dataclass(slots=True)
class _Fifo:
    frames: deque[Frame] = field(default_factory=lambda: deque[Frame]())
    capacity: int = 1
    appended_s: float = 0.0  # wall clock
    ends_s: float = float("inf")  # monotonic clock


class MemoryFrameStore:
    """The twin in memory."""

    def __init__(self, *, silent_after_s: float = 5.0) -> None:
        self._silent_after_s = silent_after_s
        self._fifos: dict[str, _Fifo] = {}
        self._announced: dict[str, float] = {}  # camera -> monotonic end
        self._changed = threading.Condition()

    def append(self, frame: Frame, *, capacity: int) -> bool:
        _check_capacity(capacity)
        new = parse_frame_id(frame.frame_id)
        with self._changed:
            fifo = self._live().setdefault(frame.camera, _Fifo())
            if new <= parse_frame_id(fifo.frames[-1].frame_id if fifo.frames else BEFORE_ALL):
                return False
            fifo.capacity, fifo.appended_s = capacity, time.time()
            fifo.frames = deque([*fifo.frames, frame][-capacity:])
            self._changed.notify_all()
            return True

    def newest(self, camera: str, count: int) -> list[Frame]:
        with self._changed:
            return self._frames(camera)[-count:] if count > 0 else []

    def newer(self, after: Mapping[str, str], *, block_s: float) -> list[Frame]:
        positions = {camera: parse_frame_id(frame_id) for camera, frame_id in after.items()}
        with self._changed:
            self._changed.wait_for(lambda: self._newer(positions), block_s)
            return self._newer(positions)

    def frame(self, camera: str, frame_id: str) -> Frame | None:
        with self._changed:
            return next((frame for frame in self._frames(camera) if frame.frame_id == frame_id), None)

    def newest_frame(self, camera: str) -> Frame | None:
        return next(iter(self.newest(camera, 1)), None)

    def cameras(self) -> list[CameraState]:
        with self._changed:
            fifos = sorted(self._live().items())
            return [self._state(name, fifo) for name, fifo in fifos if fifo.frames and not is_private(name)]

    def expire(self, camera: str, after_s: float) -> None:
        with self._changed:
            if camera in self._live():
                self._fifos[camera].ends_s = time.monotonic() + after_s

    def announce(self, cameras: Collection[str], for_s: float) -> None:
        with self._changed:
            self._announced.update(dict.fromkeys(cameras, time.monotonic() + for_s))

    def is_announced(self, camera: str) -> bool:
        with self._changed:
            return self._announced.get(camera, 0.0) > time.monotonic()

    def memory(self) -> tuple[int, int]:
        with self._changed:
            frames = [frame for fifo in self._live().values() for frame in fifo.frames]
            return sum(len(frame.visual_tokens) + len(frame.jpeg) for frame in frames), 0

    def ping(self) -> None:
        pass

    def close(self) -> None:
        pass

    def _live(self) -> dict[str, _Fifo]:
        now_s = time.monotonic()
        for camera in [name for name, fifo in self._fifos.items() if fifo.ends_s <= now_s]:
            del self._fifos[camera]
        return self._fifos

    def _frames(self, camera: str) -> list[Frame]:
        fifo = self._live().get(camera)
        return list(fifo.frames) if fifo else []

    def _newer(self, positions: Mapping[str, tuple[int, int]]) -> list[Frame]:
        return [
            frame
            for camera, position in positions.items()
            for frame in self._frames(camera)
            if parse_frame_id(frame.frame_id) > position
        ]

    def _state(self, camera: str, fifo: _Fifo) -> CameraState:
        oldest, newest = fifo.frames[0], fifo.frames[-1]
        return CameraState(
            camera=camera,
            state="live" if time.time() - fifo.appended_s <= self._silent_after_s else "silent",
            fps=fps((oldest.captured_s, newest.captured_s), len(fifo.frames)),
            newest_frame_id=newest.frame_id,
            newest_captured_s=newest.captured_s,
            num_frames=len(fifo.frames),
            capacity=fifo.capacity,
        )


def _check_capacity(capacity: int) -> None:
    if capacity < 1:
        raise ValueError(f"capacity: got {capacity}, wanted at least 1")
