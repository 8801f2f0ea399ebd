"""What a decoder holds, told about once a second: dialogs on each camera, caches, the device's memory."""

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
    CACHE_BYTES,
    CACHE_EACH_BYTES,
    CACHE_LIMIT_BYTES,
    DEVICE_BYTES,
    DEVICE_LIMIT_BYTES,
    DIALOGS,
)
from services.ports.recorder import CLIP, MetricsRecorder

SHOW_EVERY_S = 1.0


def memory_of(device: torch.device) -> tuple[int, int]:
    """Bytes in use and bytes there are: of the whole GPU, or of this process and this machine."""
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        return total - free, total
    page = os.sysconf("SC_PAGE_SIZE")
    resident = int(Path("/proc/self/statm").read_text().split()[1])
    return resident * page, os.sysconf("SC_PHYS_PAGES") * page


class DecoderGauges:
    """The gauges of one engine."""

    def __init__(self, engine: Engine, recorder: MetricsRecorder) -> None:
        self._engine, self._recorder = engine, recorder
        self._shown_at = float("-inf")  # monotonic
        self._shown: set[str] = set()  # cameras that have a gauge

    def show(self, cameras: Iterable[str]) -> None:
        """`cameras`: that of each dialog. A camera that has no dialog more gets its 0."""
        if time.monotonic() - self._shown_at < SHOW_EVERY_S:
            return
        self._shown_at = time.monotonic()
        dialogs = Counter(CLIP if is_private(name) else name for name in cameras)
        for camera in dialogs.keys() | self._shown:
            self._recorder.set(DIALOGS, dialogs[camera], camera)
        self._shown = set(dialogs)
        self._recorder.set(CACHE_BYTES, self._engine.frame_bytes, "frames")
        self._recorder.set(CACHE_BYTES, self._engine.text_bytes, "text")
        longest = max(map(self._engine.dialog_bytes, self._engine.dialogs), default=0)
        self._recorder.set(CACHE_EACH_BYTES, self._engine.camera_bytes, "camera")
        self._recorder.set(CACHE_EACH_BYTES, longest, "dialog")
        self._recorder.set(CACHE_LIMIT_BYTES, self._engine.cache_limit_bytes)
        used_bytes, limit_bytes = memory_of(self._engine.device)
        self._recorder.set(DEVICE_BYTES, used_bytes, self._engine.device.type)
        self._recorder.set(DEVICE_LIMIT_BYTES, limit_bytes, self._engine.device.type)
