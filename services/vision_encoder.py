"""VisionEncoder: pictures in, visual tokens out, many cameras at a time.

Letters: N pictures, S pixels along a side, P visual tokens a picture, Dv the encoder's width.
"""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from torch import Tensor

from model.folder import load_vision
from services.messages import VisualTokens
from services.meters import Meters, PrometheusMeters
from services.metrics import ENCODER_BATCH, FRAME_ENCODE


class VisionEncoder:
    """One replica: the vision part of a StreamChat folder. Forward passes run in a thread of their own, in turn."""

    def __init__(
        self, folder: Path, *, device: str = "cpu", threads: int = 1, meters: Meters | None = None
    ) -> None:
        self.meters: Meters = meters or PrometheusMeters("vision_encoder")
        torch.set_num_threads(threads)
        self.device = torch.device(device)
        self.dtype = torch.bfloat16 if self.device.type == "cuda" else torch.float32
        self.tower = load_vision(folder, dtype=self.dtype, device=self.device)
        self.size = self.tower.config.image_size
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="vision")
        self._encode(
            [bytes(self.size * self.size * 3)]
        )  # the first pass sets things up; nobody should wait for it

    async def encode(self, pictures: list[bytes]) -> list[VisualTokens]:
        """Raw RGB pictures, each S * S * 3 bytes -> each one's visual tokens [P, Dv]. ValueError for another size."""
        wanted = self.size * self.size * 3
        if wrong := [len(p) for p in pictures if len(p) != wanted]:
            raise ValueError(
                f"picture: got {wrong[0]} bytes, wanted {wanted} (RGB {self.size} x {self.size})"
            )
        if not pictures:
            return []
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._measured, pictures)

    def _measured(self, pictures: list[bytes]) -> list[VisualTokens]:
        start_s = time.perf_counter()
        tokens = self._encode(pictures)
        self.meters.observe(FRAME_ENCODE, time.perf_counter() - start_s)
        self.meters.observe(ENCODER_BATCH, len(pictures))
        return tokens

    @torch.inference_mode()
    def _encode(self, pictures: list[bytes]) -> list[VisualTokens]:
        flat = torch.frombuffer(bytearray(b"".join(pictures)), dtype=torch.uint8)
        pixels = flat.view(len(pictures), self.size, self.size, 3).to(self.device)
        tokens = self.tower(pixels)
        name = str(self.dtype).removeprefix("torch.")
        shape = (tokens.shape[1], tokens.shape[2])
        return [VisualTokens(shape=shape, dtype=name, data=data) for data in _raw(tokens)]


def _raw(tokens: Tensor) -> list[bytes]:
    """Little-endian bytes of each [P, Dv]; numpy knows no bfloat16, so bytes are taken as they lie."""
    return [part.numpy().tobytes() for part in tokens.contiguous().cpu().view(torch.uint8)]
