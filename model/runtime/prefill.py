"""Prefill: parts of several dialogs' prompts, packed into one forward.

Letters: N tokens of the forward, H query heads, G key/value heads, d head size, S tokens a page, F frames, T tokens of
one dialog.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from model.engine.dialog import Dialog, PendingToken
from model.network.attention import FrameAttention
from model.network.rope import RotaryEmbedding, in_table, rotate
from model.runtime.kv_cache import FrameKVCache, TextKVCache
from model.runtime.packed_model import PackedModel


class PrefillTextAttention:
    """Several tokens of one dialog read what its pages hold, and each other."""

    def __init__(self, cache: TextKVCache, dialog: Dialog, num_new: int) -> None:
        self._cache, size, device = cache, cache.page_tokens, cache.device
        held = [(at, page) for at, page in enumerate(dialog.pages) if page >= 0]
        column = {at: column for column, (at, _) in enumerate(held)}
        self._pages = torch.tensor([page for _, page in held], device=device)
        tokens = np.arange(dialog.num_computed_tokens, dialog.num_computed_tokens + num_new)
        pages = np.array([dialog.pages[at] for at in (tokens // size).tolist()])
        self._lines = torch.from_numpy(cache.lines(pages, tokens % size)).to(device)
        hidden = np.concatenate([dialog.masked_tokens(at * size, size) for at, _ in held])
        own = np.array([column[int(at)] for at in tokens // size]) * size + tokens % size
        hidden[own] = False
        causal = np.arange(len(hidden))[None] <= own[:, None]
        self._mask = torch.from_numpy(~hidden[None] & causal).to(device)
        self._length = int(own[-1]) + 1

    def attend(self, layer: int, query: Tensor, keys_values: Tensor, out: Tensor) -> None:
        """query [T, H, d], keys and values [T, 2 * G, d], which are kept -> out [T, H * d]."""
        self._cache.write(layer, self._lines, keys_values)
        keys, values = (
            part[self._pages].transpose(0, 1).flatten(1, 2)[None, :, : self._length]
            for part in self._cache.layers[layer]
        )
        mask = self._mask[:, : self._length]
        read = scaled_dot_product_attention(
            query.transpose(0, 1)[None], keys, values, attn_mask=mask, enable_gqa=True
        )
        out.view(query.shape).copy_(read[0].transpose(0, 1))


class PrefillFrameAttention:
    """Several tokens of one dialog read its ring, each one the frames that were there for it."""

    def __init__(
        self,
        rope: RotaryEmbedding,
        cache: FrameKVCache,
        dialog: Dialog,
        unread: Sequence[PendingToken],
        dtype: torch.dtype,
    ) -> None:
        visible = {
            newest: dialog.visible_slots(newest) for newest in {token.newest_frame for token in unread}
        }
        self._cache, self._page = cache, dialog.ring.page
        self._attention = FrameAttention(
            rope,
            torch.from_numpy(dialog.ring_frame_index[None]).to(cache.device),
            torch.tensor([[visible[token.newest_frame] for token in unread]], device=cache.device),
            dtype=dtype,
        )

    def attend(self, cross: int, query: Tensor, out: Tensor) -> None:
        """query [T, H, d], rotated by p -> out [T, H * d]."""
        keys, values = (part[self._page].permute(1, 2, 0, 3) for part in self._cache.layers[cross])
        out.view(query.shape).copy_(self._attention(query[None], keys, values)[0])


class PrefillBatch:
    """Some dialogs' next unread tokens, and their attention back end (`AttentionBackend`).

    The tensors that the back end is given are its buffers' own, split by dialog in advance.
    """

    def __init__(
        self,
        model: PackedModel,
        text: TextKVCache,
        frames: FrameKVCache,
        parts: Sequence[tuple[Dialog, Sequence[PendingToken]]],
    ) -> None:
        tokens = [token for _, unread in parts for token in unread]
        self.buffers = own = model.buffers(len(tokens))
        self.rotate = own.rotate
        own.token_ids = torch.tensor([token.token_id for token in tokens], device=text.device)
        positions = [token.temporal_index for token in tokens]
        index = torch.tensor(positions, device=text.device)
        model.rope.write_rotation(index, own.rotation, in_table=in_table(positions))
        self._text = [PrefillTextAttention(text, dialog, len(unread)) for dialog, unread in parts]
        self._frames = [
            PrefillFrameAttention(model.rope, frames, dialog, unread, own.read.dtype)
            for dialog, unread in parts
        ]
        self._sizes = [len(unread) for _, unread in parts]
        self._query, self._keys_values, self._read = (
            part.split(self._sizes) for part in (own.query, own.keys_values, own.read)
        )

    def attend_text(self, layer: int, query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """See `AttentionBackend`: each dialog's tokens read its own text."""
        parts = zip(self._text, self._query, self._keys_values, self._read, strict=True)
        for attention, part, keys_values, out in parts:
            attention.attend(layer, part, keys_values, out)
        return self.buffers.read

    def attend_frames(self, cross: int, query: Tensor) -> Tensor:
        """See `AttentionBackend`: each dialog's tokens read its own ring."""
        queries = rotate(query, self.buffers.rotation.unsqueeze(2)).split(self._sizes)
        for attention, part, out in zip(self._frames, queries, self._read, strict=True):
            attention.attend(cross, part, out)
        return self.buffers.read
