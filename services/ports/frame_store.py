"""The port of the frame store: a FIFO for each camera that holds exactly its N newest frames.

`services/adapters/redis_frame_store.py` is the store in production. Tests have a twin in memory
(`tests/services/adapters/memory_frame_store.py`); one contract suite runs on both.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Protocol

from services.messages.camera_name import PRIVATE_PREFIX
from services.messages.video import CameraNote, CameraState, Frame, Picture

BEFORE_ALL = "0-0"  # older than every frame id
KEPT_S = 60.0


class StoreLost(ConnectionError):
    """The store cannot be reached or is full. It may be back at the next call."""


class StoreFull(StoreLost):
    """The store has no room for a frame."""


class FrameStore(Protocol):
    """Thread-safe and blocking: call it from a thread. Every method may raise StoreLost."""

    def append(self, frame: Frame, *, capacity: int, keep_s: float = KEPT_S) -> bool:
        """Add the newest frame and its picture, and keep the last `capacity`. All of it is stored, or nothing.

        The camera is forgotten `keep_s` after its last frame. False: refused, because its id is not newer (a replay).
        Raises StoreFull when there is no room.
        """
        ...

    def newest(self, camera: str, count: int) -> list[Frame]:
        """The newest `count` frames without their pictures, oldest first."""
        ...

    def newer(self, after: Mapping[str, str], *, block_s: float) -> list[Frame]:
        """All frames that are newer than the given id of their camera, without their pictures.

        The frames of a camera are in order, oldest first. Waits at most `block_s` for the first one.
        """
        ...

    def newer_pictures(self, after: Mapping[str, str], *, block_s: float) -> list[Picture]:
        """The same for pictures."""
        ...

    def picture(self, camera: str, frame_id: str) -> Picture | None:
        """The picture of one frame; None when it does not exist (any more)."""
        ...

    def newest_picture(self, camera: str) -> Picture | None: ...

    def camera(self, camera: str) -> CameraState | None:
        """One camera; None when it has no frames. One round trip, however many cameras there are."""
        ...

    def cameras(self, only: Collection[str] | None = None) -> list[CameraState]:
        """The cameras with frames, sorted by name: of these names, or all but the private ones. Reads no frames."""
        ...

    def announce(self, notes: Mapping[str, CameraNote], for_s: float) -> None:
        """Remember for `for_s` seconds that these cameras send, even if no frame is stored yet."""
        ...

    def notes(self, only: Collection[str] | None = None) -> dict[str, CameraNote]:
        """The notes of the announced cameras: of these names, or all, also of those without a frame."""
        ...

    def bind(self, topics: Mapping[str, str], for_s: float) -> dict[str, str]:
        """Bind each camera to its topic unless it is bound to another; gives the topic that each is bound to.

        Atomic for each camera. A binding ends `for_s` seconds after the last call with the same topic.
        """
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
