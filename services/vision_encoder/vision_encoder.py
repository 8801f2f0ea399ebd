"""VisionEncoder: encodes the pictures of many cameras into visual tokens.

While one forward pass runs, the pictures of other cameras gather, and the next pass takes them all: batches grow with
the load, and no picture waits for a batch to fill. (Ray Serve's own batching waits a fixed time for every batch, and
does not batch what arrives while it is busy.) A picture waits for one pass at most, unless more than `max_pictures` are
waiting; under such load FrameFifo drops the older frames.

Letters: N pictures, S pixels along a side, P visual tokens a picture, Dv the encoder's width.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from model.checkpoint.folder import load_vision
from services.messages.video import VisualTokens
from services.ports.recorder import MetricsRecorder
from services.vision_encoder.metrics import VisionEncoderMetrics


class _Call(NamedTuple):
    pictures: list[bytes]
    answer: Future[list[VisualTokens]]


class VisionEncoder:
    """One replica: the vision part of a StreamChat folder. Forward passes run one by one in a thread."""

    def __init__(
        self,
        folder: Path,
        *,
        device: str = "cpu",
        threads: int = 1,
        max_pictures: int = 16,
        recorder: MetricsRecorder,
    ) -> None:
        """`max_pictures`: how many pictures of several callers are encoded in one pass."""
        torch.set_num_threads(threads)
        self.device = torch.device(device)
        self.dtype = torch.bfloat16 if self.device.type == "cuda" else torch.float32
        self.tower = load_vision(folder, dtype=self.dtype, device=self.device)
        self.size = self.tower.config.image_size
        self.max_pictures = max_pictures
        self.recorder = recorder
        self._metrics = VisionEncoderMetrics(recorder)
        self._waiting: deque[_Call] = deque()
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="vision")
        self._encode([bytes(self.size * self.size * 3)])  # the first pass is slow

    async def encode(self, pictures: list[bytes]) -> list[VisualTokens]:
        """Raw RGB pictures, each S * S * 3 bytes -> each one's visual tokens [P, Dv]. ValueError for another size."""
        wanted = self.size * self.size * 3
        if wrong := [len(p) for p in pictures if len(p) != wanted]:
            raise ValueError(
                f"picture: got {wrong[0]} bytes, wanted {wanted} (RGB {self.size} x {self.size})"
            )
        if not pictures:
            return []
        call = _Call(pictures, Future())
        self._waiting.append(call)
        self._thread.submit(self._run_pass)  # once per call; a pass that finds nothing waiting does nothing
        return await asyncio.wrap_future(call.answer)

    def _run_pass(self) -> None:
        """Encode all waiting pictures together."""
        calls = self._take()
        if not calls:
            return
        try:
            tokens = iter(self._encode_measured([picture for call in calls for picture in call.pictures]))
        except Exception as error:  # every caller gets the error
            for call in calls:
                call.answer.set_exception(error)
            return
        for call in calls:
            call.answer.set_result([next(tokens) for _ in call.pictures])

    def _take(self) -> list[_Call]:
        """The oldest calls that are not cancelled. A single call may be larger than a batch."""
        calls: list[_Call] = []
        room = self.max_pictures
        while self._waiting and (not calls or len(self._waiting[0].pictures) <= room):
            call = self._waiting.popleft()
            if call.answer.set_running_or_notify_cancel():
                calls.append(call)
                room -= len(call.pictures)
        return calls

    def _encode_measured(self, pictures: list[bytes]) -> list[VisualTokens]:
        start_s = time.perf_counter()
        tokens = self._encode(pictures)
        self._metrics.batch_encoded(len(pictures), time.perf_counter() - start_s)
        return tokens

    @torch.inference_mode()
    def _encode(self, pictures: list[bytes]) -> list[VisualTokens]:
        """Bytes go to the device as they are; scaling to the encoder's numbers happens there (`VisionTower`)."""
        flat = torch.frombuffer(bytearray(b"".join(pictures)), dtype=torch.uint8)
        pixels = flat.view(len(pictures), self.size, self.size, 3).to(self.device)
        tokens = self.tower(pixels)
        name = str(self.dtype).removeprefix("torch.")
        shape = (tokens.shape[1], tokens.shape[2])
        return [VisualTokens(shape=shape, dtype=name, data=data) for data in _to_bytes(tokens)]


def _to_bytes(tokens: Tensor) -> list[bytes]:
    """Little-endian bytes of each [P, Dv]; numpy has no bfloat16, so the bytes are copied as they are."""
    return [part.numpy().tobytes() for part in tokens.contiguous().cpu().view(torch.uint8)]
