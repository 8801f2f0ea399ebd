"""The forwards of an engine: decoding steps, prefill and frame ingest, over one packed model and its caches.

Letters: B rows (dialogs of a step), V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from model.engine.dialog import Dialog, PendingToken
from model.network.streamchat import StreamChat
from model.runtime.decode_step import DecodeStep
from model.runtime.frame_ingest import FrameIngest
from model.runtime.kv_cache import FrameKVCache, TextKVCache
from model.runtime.packed_model import PackedModel
from model.runtime.packed_weights import Quantise
from model.runtime.prefill import PrefillBatch


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
