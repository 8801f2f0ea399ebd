"""The frame store in memory: behaves as the one on Redis does (one contract suite runs on both)."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import TypeVar

from services.messages.video import CameraNote, CameraState, Frame, Picture
from services.ports.frame_store import BEFORE_ALL, KEPT_S, fps, is_private, parse_frame_id

Entry = TypeVar("Entry", Frame, Picture)


@dataclass(slots=True)
class _Fifo:
    frames: deque[Frame] = field(default_factory=lambda: deque[Frame]())
    capacity: int = 1
    appended_s: float = 0.0  # wall clock
    ends_s: float = float("inf")  # monotonic clock


class MemoryFrameStore:
    """A FrameStore in one process."""

    def __init__(self, *, silent_after_s: float = 5.0) -> None:
        self._silent_after_s = silent_after_s
        self._fifos: dict[str, _Fifo] = {}
        self._noted: dict[str, tuple[CameraNote, float]] = {}  # with its monotonic end
        self._topics: dict[str, tuple[str, float]] = {}  # camera -> topic, monotonic end
        self._changed = threading.Condition()

    def append(self, frame: Frame, *, capacity: int, keep_s: float = KEPT_S) -> bool:
        _check_capacity(capacity)
        new = parse_frame_id(frame.frame_id)
        with self._changed:
            fifo = self._live().setdefault(frame.camera, _Fifo())
            if new <= parse_frame_id(fifo.frames[-1].frame_id if fifo.frames else BEFORE_ALL):
                return False
            fifo.capacity, fifo.appended_s = capacity, time.time()
            fifo.frames = deque([*fifo.frames, frame][-capacity:])
            fifo.ends_s = time.monotonic() + keep_s
            self._changed.notify_all()
            return True

    def newest(self, camera: str, count: int) -> list[Frame]:
        with self._changed:
            return self._frames(camera)[-count:] if count > 0 else []

    def newest_picture(self, camera: str) -> Picture | None:
        with self._changed:
            return self._pictures(camera)[-1] if self._pictures(camera) else None

    def newer(self, after: Mapping[str, str], *, block_s: float) -> list[Frame]:
        positions = {camera: parse_frame_id(frame_id) for camera, frame_id in after.items()}
        with self._changed:
            self._changed.wait_for(lambda: self._newer(self._frames, positions), block_s)
            return self._newer(self._frames, positions)

    def newer_pictures(self, after: Mapping[str, str], *, block_s: float) -> list[Picture]:
        positions = {camera: parse_frame_id(frame_id) for camera, frame_id in after.items()}
        with self._changed:
            self._changed.wait_for(lambda: self._newer(self._pictures, positions), block_s)
            return self._newer(self._pictures, positions)

    def picture(self, camera: str, frame_id: str) -> Picture | None:
        with self._changed:
            return next((one for one in self._pictures(camera) if one.frame_id == frame_id), None)

    def camera(self, camera: str) -> CameraState | None:
        return next(iter(self.cameras([camera])), None)

    def cameras(self, only: Collection[str] | None = None) -> list[CameraState]:
        with self._changed:
            fifos = sorted(self._live().items())
            return [
                self._state(name, fifo)
                for name, fifo in fifos
                if fifo.frames and (not is_private(name) if only is None else name in only)
            ]

    def forget(self, camera: str) -> None:
        """As if the camera had sent nothing for long."""
        with self._changed:
            self._fifos.pop(camera, None)

    def announce(self, notes: Mapping[str, CameraNote], for_s: float) -> None:
        with self._changed:
            self._noted.update({camera: (note, time.monotonic() + for_s) for camera, note in notes.items()})

    def notes(self, only: Collection[str] | None = None) -> dict[str, CameraNote]:
        with self._changed:
            found = {camera: note for camera, (note, end) in self._noted.items() if end > time.monotonic()}
            return {camera: note for camera, note in found.items() if only is None or camera in only}

    def bind(self, topics: Mapping[str, str], for_s: float) -> dict[str, str]:
        with self._changed:
            now = time.monotonic()
            for camera, topic in topics.items():
                bound, ends_at = self._topics.get(camera, (topic, 0.0))
                if bound == topic or ends_at <= now:
                    self._topics[camera] = topic, now + for_s
            return {camera: self._topics[camera][0] for camera in topics}

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
        return [replace(frame, jpeg=b"") for frame in fifo.frames] if fifo else []

    def _pictures(self, camera: str) -> list[Picture]:
        fifo = self._live().get(camera)
        return [
            Picture(camera=camera, frame_id=one.frame_id, captured_s=one.captured_s, jpeg=one.jpeg)
            for one in (fifo.frames if fifo else ())
        ]

    def _newer(
        self, entries: Callable[[str], list[Entry]], positions: Mapping[str, tuple[int, int]]
    ) -> list[Entry]:
        return [
            entry
            for camera, position in positions.items()
            for entry in entries(camera)
            if parse_frame_id(entry.frame_id) > position
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
