"""The port of the frame store: a FIFO for each camera that holds exactly its N newest frames.

`services/adapters/redis_frame_store.py` is the store in production. Tests have a twin in memory
(`tests/services/adapters/memory_frame_store.py`); one contract suite runs on both.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Protocol

from services.messages.camera_name import PRIVATE_PREFIX
from services.messages.video import CameraState, Frame

BEFORE_ALL = "0-0"  # older than every frame id


class StoreLost(ConnectionError):
    """The store cannot be reached or is full. It may be back at the next call."""


class FrameStore(Protocol):
    """Thread-safe and blocking: call it from a thread. Every method may raise StoreLost."""

    def append(self, frame: Frame, *, capacity: int) -> bool:
        """Add the newest frame and keep the last `capacity`. False: refused, because its id is not newer (a replay)."""
        ...

    def newest(self, camera: str, count: int) -> list[Frame]:
        """The newest `count` frames, oldest first."""
        ...

    def newer(self, after: Mapping[str, str], *, block_s: float) -> list[Frame]:
        """All frames that are newer than the given id of their camera, oldest first for each camera.

        Waits at most `block_s` for the first one.
        """
        ...

    def frame(self, camera: str, frame_id: str) -> Frame | None:
        """One frame; None when it does not exist (any more)."""
        ...

    def newest_frame(self, camera: str) -> Frame | None: ...

    def cameras(self) -> list[CameraState]:
        """All cameras with frames, sorted by name, without private ones. Cheap: reads no frames."""
        ...

    def expire(self, camera: str, after_s: float) -> None:
        """Delete the camera's frames `after_s` from now, unless called again before."""
        ...

    def announce(self, cameras: Collection[str], for_s: float) -> None:
        """Remember for `for_s` seconds that these cameras send, even if no frame is stored yet."""
        ...

    def is_announced(self, camera: str) -> bool:
        """Whether the camera was announced and `for_s` has not passed."""
        ...

    def memory(self) -> tuple[int, int]:
        """Bytes in use, and the maximum (0: no limit)."""
        ...

    def ping(self) -> None: ...

    def close(self) -> None: ...


def is_private(camera: str) -> bool:
    """Whether it is the FIFO of a clip and not a camera."""
    return camera.startswith(PRIVATE_PREFIX)


def parse_frame_id(frame_id: str) -> tuple[int, int]:
    """(milliseconds, sequence), by which frames are ordered. ValueError for an invalid id."""
    found = re.fullmatch(r"(\d{1,19})-(\d{1,19})", frame_id, re.ASCII)
    if not found or max(parts := (int(found[1]), int(found[2]))) >= 2**63:
        raise ValueError(f"frame id: got {frame_id!r}, wanted '<milliseconds>-<sequence>'")
    return parts


def fps(captured_s: tuple[float, float], num_frames: int) -> float:
    """Frames per second of a FIFO, from the capture times of its oldest and newest frame."""
    span_s = captured_s[1] - captured_s[0]
    return (num_frames - 1) / span_s if num_frames > 1 and span_s > 0 else 0.0
