"""ClipPlayer: puts a clip that came with a question into a FIFO of its own, ready to be asked about."""

from __future__ import annotations

import asyncio
import logging
import time
import uuid

from model.config import StreamChatConfig
from services.clip_player.clip_decoder import ClipLimits
from services.clip_player.clip_process import decode_in_process
from services.messages.video import ClipRefused, PlayedClip, VisualTokens
from services.ports.frame_store import PRIVATE_PREFIX, FrameStore, StoreFull, StoreLost
from services.ports.vision_encoder import Encode, encode_checked
from services.settings import Settings
from services.video.sampled_frame import SampledFrame

log = logging.getLogger(__name__)

MAX_CLIPS = 2  # decoded at a time
CLIP_KEPT_S = 300.0


class ClipPlayer:
    """Decodes clips in a sandboxed process, has their frames encoded, and stores them in private FIFOs."""

    def __init__(
        self, settings: Settings, config: StreamChatConfig, store: FrameStore, encode: Encode
    ) -> None:
        self._store = store
        self._encode = encode
        self._batch_size = settings.encoder_batch
        self._memory_bytes = settings.max_clip_memory_bytes
        self._limits = ClipLimits(
            frames_per_second=settings.frames_per_second or config.frames_per_second,
            capacity=settings.fifo_frames or config.fifo_frames,
            image_size=config.vision.image_size,
            max_pixels=settings.max_pixels,
            max_bytes=settings.max_request_bytes,
            decode_budget_s=settings.max_clip_decode_s,
        )
        self._slots = asyncio.Semaphore(MAX_CLIPS)

    async def play(self, media: bytes, kind: str) -> PlayedClip:
        """Put the frames of a clip ("video" or "image") into a private FIFO.

        ClipRefused says what is wrong with the clip, or which service is away.
        """
        async with self._slots:
            frames = await asyncio.to_thread(
                decode_in_process,
                media,
                kind,
                self._limits,
                end_s=time.time(),
                memory_bytes=self._memory_bytes,
            )
        camera = f"{PRIVATE_PREFIX}{uuid.uuid4()}"
        for first in range(0, len(frames), self._batch_size):
            await self._encode_and_store(camera, frames[first : first + self._batch_size])
        return PlayedClip(camera=camera, num_frames=len(frames), end_s=frames[-1].captured_s)

    async def _encode_and_store(self, camera: str, frames: list[SampledFrame]) -> None:
        try:
            tokens = await encode_checked(self._encode, [frame.pixels for frame in frames])
        except Exception as error:
            log.warning("a clip could not be encoded: %s", error)
            raise ClipRefused(503, "encoder_lost", "the clip could not be encoded now; try again") from error
        try:
            await asyncio.to_thread(self._append, camera, frames, tokens)
        except StoreLost as error:
            why = (
                "the store of frames is full"
                if isinstance(error, StoreFull)
                else "the clip could not be stored now"
            )
            raise ClipRefused(503, "store_lost", f"{why}; try again") from error

    def _append(self, camera: str, frames: list[SampledFrame], tokens: list[VisualTokens]) -> None:
        for frame, encoded in zip(frames, tokens, strict=True):
            self._store.append(
                frame.to_frame(camera, encoded), capacity=self._limits.capacity, keep_s=CLIP_KEPT_S
            )
