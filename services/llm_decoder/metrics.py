"""The metrics of an LLMDecoder."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import torch

from model.engine.engine import Engine
from services.ports.frame_store import is_private
from services.ports.metric_catalogue import (
    BUSY,
    CACHE_BYTES,
    CACHE_EACH_BYTES,
    CACHE_LIMIT_BYTES,
    DEVICE_BYTES,
    DEVICE_LIMIT_BYTES,
    DIALOGS,
    FAILED_ROWS,
    FRAME_AGE,
    REFRESHES,
    SKIPPED_FRAMES,
    STEP,
    STEP_DIALOGS,
)
from services.ports.recorder import CLIP, MetricsRecorder

UPDATE_EVERY_S = 1.0


def memory_of(device: torch.device) -> tuple[int, int]:
    """Bytes in use and bytes in total: of the whole GPU, or of this process and this machine."""
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        return total - free, total
    page = os.sysconf("SC_PAGE_SIZE")
    resident = int(Path("/proc/self/statm").read_text().split()[1])
    return resident * page, os.sysconf("SC_PHYS_PAGES") * page


class LLMDecoderMetrics:
    """Reports to a recorder: every step, and once a second what the engine holds."""

    def __init__(self, engine: Engine, recorder: MetricsRecorder) -> None:
        self._engine, self._recorder = engine, recorder
        self._updated_at = float("-inf")  # monotonic
        self._cameras: set[str] = set()  # cameras in the last update
        self._num_skipped = self._num_failed = 0  # the engine's counts at the last update

    def frames_enqueued(self, num_frames: int) -> None:
        """New frames were handed to the engine."""
        self._recorder.count(REFRESHES, by=num_frames)

    def step_made(self, duration_s: float, num_dialogs: int) -> None:
        """One decoding step has ended."""
        self._recorder.observe(STEP, duration_s)
        self._recorder.count(BUSY, by=duration_s)
        self._recorder.observe(STEP_DIALOGS, num_dialogs)

    def live_token_made(self, camera: str, frame_age_s: float) -> None:
        """A dialog that follows a live camera got a token."""
        self._recorder.observe(FRAME_AGE, max(0.0, frame_age_s), camera)

    def update(self, cameras: Iterable[str]) -> None:
        """What the engine holds. `cameras` has one entry per dialog; a camera whose dialogs have ended is set to 0."""
        if time.monotonic() - self._updated_at < UPDATE_EVERY_S:
            return
        self._updated_at = time.monotonic()
        dialogs = Counter(CLIP if is_private(name) else name for name in cameras)
        for camera in dialogs.keys() | self._cameras:
            self._recorder.set(DIALOGS, dialogs[camera], camera)
        self._cameras = set(dialogs)
        num_skipped, num_failed = self._engine.num_skipped_frames, self._engine.num_failed_rows
        self._recorder.count(SKIPPED_FRAMES, by=num_skipped - self._num_skipped)
        self._recorder.count(FAILED_ROWS, by=num_failed - self._num_failed)
        self._num_skipped, self._num_failed = num_skipped, num_failed
        frames, text = self._engine.frame_pages, self._engine.text_pages
        self._recorder.set(CACHE_BYTES, frames.allocated_bytes, "frames")
        self._recorder.set(CACHE_BYTES, text.allocated_bytes, "text")
        longest = max(map(text.held_bytes, self._engine.dialogs.values()), default=0)
        self._recorder.set(CACHE_EACH_BYTES, frames.page_bytes, "camera")
        self._recorder.set(CACHE_EACH_BYTES, longest, "dialog")
        self._recorder.set(CACHE_LIMIT_BYTES, frames.size_bytes + text.size_bytes)
        used_bytes, limit_bytes = memory_of(self._engine.device)
        self._recorder.set(DEVICE_BYTES, used_bytes, self._engine.device.type)
        self._recorder.set(DEVICE_LIMIT_BYTES, limit_bytes, self._engine.device.type)
