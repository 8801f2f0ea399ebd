"""The forwards of an engine: decoding steps, prefill and frame ingest, over one packed model and its caches.

Letters: B rows (dialogs of a step), V vocabulary.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch
from torch import Tensor

from model.engine.dialog import Dialog, PendingToken
from model.network.streamchat import StreamChat
from model.runtime.decode_step import DecodeStep
from model.runtime.frame_ingest import FrameChain, FrameIngest, NewFrame
from model.runtime.kv_cache import FrameKVCache, TextKVCache
from model.runtime.packed_model import PackedModel
from model.runtime.packed_weights import Quantise
from model.runtime.prefill import PrefillBatch

log = logging.getLogger(__name__)


class ModelRunner:
    """Runs the model for dialogs whose pages are allocated. The engine decides what runs."""

    def __init__(
        self,
        model: StreamChat,
        *,
        num_rings: int,
        num_text_pages: int,
        page_tokens: int,
        quantise: Quantise | None = None,
    ) -> None:
        """Allocates both caches and packs the weights. With `quantise`, `model` cannot be used afterwards."""
        dtype, device = model.dtype, model.language.embed_tokens.weight.device
        with torch.inference_mode():
            self.frame_cache = FrameKVCache(model.config, num_rings, dtype, device)
            self.text_cache = TextKVCache(model.config, num_text_pages, page_tokens, dtype, device)
        self._packed = PackedModel(model, quantise)
        self.ingest = FrameIngest(model, self._packed)
        self.step: DecodeStep | None = None

    @torch.inference_mode()
    def decode(self, rows: Sequence[Dialog]) -> Tensor:
        """Logits [B, V] of each dialog's next token. The next call overwrites them."""
        if self.step is None or not self.step.advance(rows):
            self.step = DecodeStep(self._packed, self.text_cache, self.frame_cache, rows)
        self.step.run()
        return self.step.logits

    @torch.inference_mode()
    def prefill(self, parts: Sequence[tuple[Dialog, Sequence[PendingToken]]]) -> None:
        """Write the keys and values of several dialogs' next prompt tokens into the text cache."""
        batch = PrefillBatch(self._packed, self.text_cache, self.frame_cache, parts)
        self._packed.forward(batch.buffers, batch)

    @torch.inference_mode()
    def ingest_piece(self, allowed_s: float) -> list[tuple[NewFrame, FrameChain]]:
        """One piece of frame ingest, for about half of `allowed_s`; returns the frames that are complete.

        Frames with NaN or infinity are left out: whoever looked at them would fail.
        """
        ready = list[tuple[NewFrame, FrameChain]]()
        for frame, chain in self.ingest.run_piece(allowed_s):
            sums = [part.sum(dtype=torch.float32) for pair in chain for part in pair]
            if torch.stack(sums).isfinite().all():
                ready.append((frame, chain))
            else:
                log.warning(
                    "camera %s: frame %s has NaN or infinity, and is skipped", frame.camera, frame.frame_id
                )
        return ready

    @torch.inference_mode()
    def clear_page(self, page: int) -> None:
        """Set a page of the text cache to zeros."""
        for part in (part for layer in self.text_cache.layers for part in layer):
            part[page].zero_()
