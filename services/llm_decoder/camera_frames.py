"""Hands new frames to the engine, and drops cameras that nobody asks about."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Iterable

import numpy as np
import torch
from torch import Tensor

from model.engine.admission import EngineFull
from model.engine.engine import Engine
from services.messages.video import Frame
from services.ports.frame_store import is_private, parse_frame_id

log = logging.getLogger(__name__)

FrameKey = tuple[int, int]  # a parsed frame id


class CameraFrames:
    """The cameras of one engine. The decode loop's thread uses it; `has` may be called from any thread."""

    def __init__(self, engine: Engine, *, forget_after_s: float, on_forget: Callable[[str], None]) -> None:
        """`on_forget` is called with each camera that is dropped."""
        self._engine = engine
        self._forget_after_s, self._on_forget = forget_after_s, on_forget
        self._newest: dict[str, FrameKey] = {}  # newest frame of each camera, enqueued or in the ring
        self._used_at: dict[str, float] = {}  # monotonic

    def has(self, camera: str) -> bool:
        """Whether the frames of the camera are enqueued or in the ring already."""
        return camera in self._newest

    def newest(self, camera: str) -> FrameKey | None:
        """The newest frame of a camera, enqueued or in the ring."""
        return self._newest.get(camera)

    def touch(self, camera: str) -> None:
        """Note that a dialog uses the camera now."""
        self._used_at[camera] = time.monotonic()

    def enqueue(self, frames: Iterable[Frame]) -> int:
        """Enqueue new frames in the engine, those of one camera together; returns how many."""
        by_camera: dict[str, list[Frame]] = {}
        for frame in frames:
            key = parse_frame_id(frame.frame_id)
            if key > self._newest.get(frame.camera, (-1, -1)):
                self._newest[frame.camera] = key
                by_camera.setdefault(frame.camera, []).append(frame)
        return sum(self._enqueue(camera, new) for camera, new in by_camera.items())

    def add_without_frames(self, camera: str) -> bool:
        """Add a camera that never has a frame, unless it is there. False: all places for cameras are taken."""
        try:
            if camera not in self._engine.cameras and (dropped := self._engine.add_camera(camera)):
                self._forget(dropped)
        except EngineFull:
            return False
        self.touch(camera)
        return True

    def _enqueue(self, camera: str, frames: list[Frame]) -> int:
        self._used_at.setdefault(camera, time.monotonic())
        try:
            if camera not in self._engine.cameras and (dropped := self._engine.add_camera(camera)):
                self._forget(dropped)
            self._engine.enqueue_frames(
                camera, [(frame.frame_id, frame.captured_s, to_tensor(frame)) for frame in frames]
            )
        except Exception:
            log.exception("frames of camera %s could not be enqueued", camera)
            if camera not in self._engine.cameras:
                self._forget(camera)
            return 0
        return len(frames)

    def forget_unused(self, in_use: Collection[str]) -> None:
        """Drop cameras that are not in use: private clips at once, others after a while."""
        for camera, used_at in list(self._used_at.items()):
            keep_s = 0.0 if is_private(camera) else self._forget_after_s
            if camera not in in_use and time.monotonic() - used_at > keep_s:
                try:
                    if camera in self._engine.cameras:
                        self._engine.drop_camera(camera)
                except ValueError:
                    log.exception("camera %s could not be dropped", camera)
                    self.touch(camera)
                    continue
                self._forget(camera)

    def _forget(self, camera: str) -> None:
        self._newest.pop(camera, None)
        self._used_at.pop(camera, None)
        self._on_forget(camera)


def to_tensor(frame: Frame) -> Tensor:
    """The visual tokens [P, Dv] of a frame."""
    if frame.dtype == "bfloat16":
        bits = np.frombuffer(frame.visual_tokens, dtype=np.int16).copy()
        return torch.from_numpy(bits).view(torch.bfloat16).view(frame.shape)
    return torch.from_numpy(np.frombuffer(frame.visual_tokens, dtype=frame.dtype).reshape(frame.shape).copy())
