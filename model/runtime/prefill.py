"""Parts of several dialogs' prompts, packed into one forward.

Letters: N tokens of the forward, H query heads, d head size, S tokens a page, F frames, T tokens of a chunk.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from model.engine.dialog import Dialog, PendingToken
from model.network.attention import FrameView
from model.network.rope import Rope, is_near
from model.runtime.kv_cache import FrameStore, TextStore
from model.runtime.packed_model import Decoding


class TextChunk:
    """Several tokens of one dialog, after what its pages hold."""

    def __init__(self, store: TextStore, dialog: Dialog, num_new: int) -> None:
        self._store, size, device = store, store.page_tokens, store.device
        held = [(at, page) for at, page in enumerate(dialog.pages) if page >= 0]
        column = {at: column for column, (at, _) in enumerate(held)}
        self._pages = torch.tensor([page for _, page in held], device=device)
        tokens = np.arange(dialog.num_computed_tokens, dialog.num_computed_tokens + num_new)
        pages = np.array([dialog.pages[at] for at in (tokens // size).tolist()])
        self._lines = torch.from_numpy(store.lines(pages, tokens % size)).to(device)
        hidden = np.concatenate([dialog.masked_tokens(at * size, size) for at, _ in held])
        place = np.array([column[int(at)] for at in tokens // size]) * size + tokens % size
        visible = ~hidden[None] | (np.arange(len(hidden))[None] == place[:, None])
        causal = np.arange(len(hidden))[None] <= place[:, None]
        own = np.isin(np.arange(len(hidden)), place)
        self._mask = torch.from_numpy((visible | own[None]) & causal).to(device)
        self._length = int(place[-1]) + 1

    def attend(self, layer: int, query: Tensor, keys_values: Tensor, out: Tensor) -> None:
        """query [T, H, d], keys and values [T, 2 * G, d], which are kept -> out [T, H, d]."""
        self._store.write(layer, self._lines, keys_values)
        keys, values = (
            part[self._pages].transpose(0, 1).flatten(1, 2)[None, :, : self._length]
            for part in self._store.layers[layer]
        )
        mask = self._mask[:, : self._length]
        read = scaled_dot_product_attention(
            query.transpose(0, 1)[None], keys, values, attn_mask=mask, enable_gqa=True
        )
        out.copy_(read[0].transpose(0, 1))


class FrameChunk:
    """Several tokens of one dialog look at its ring, each at the frames that were there for it."""

    def __init__(
        self,
        rope: Rope,
        store: FrameStore,
        dialog: Dialog,
        unread: Sequence[PendingToken],
        dtype: torch.dtype,
    ) -> None:
        device = store.device
        rows = {newest: dialog.visible_slots(newest) for newest in {token.newest_frame for token in unread}}
        self._store, self._place = store, slice(dialog.ring.page, dialog.ring.page + 1)
        self._view = FrameView(
            rope,
            torch.tensor([[token.temporal_index for token in unread]], device=device),
            torch.from_numpy(dialog.ring_frame_index[None]).to(device),
            torch.tensor([[rows[token.newest_frame] for token in unread]], device=device),
            dtype=dtype,
        )

    def look(self, cross: int, query: Tensor, out: Tensor) -> None:
        """query [T, H, d] -> out [T, H, d]."""
        keys, values = (part[self._place].permute(0, 2, 3, 1, 4) for part in self._store.layers[cross])
        out.copy_(self._view.attend(query.transpose(0, 1)[None], keys, values)[0].transpose(0, 1))


class Chunks:
    """See `Reader`."""

    def __init__(
        self,
        decoding: Decoding,
        text: TextStore,
        frames: FrameStore,
        chunks: Sequence[tuple[Dialog, Sequence[PendingToken]]],
    ) -> None:
        tokens = [token for _, unread in chunks for token in unread]
        self.buffers = own = decoding.buffers(len(tokens))
        own.tokens = torch.tensor([token.token_id for token in tokens], device=text.device)
        index = [token.temporal_index for token in tokens]
        decoding.rope.turns(torch.tensor(index, device=text.device), own.turns, near=is_near(index))
        self._text = [TextChunk(text, dialog, len(unread)) for dialog, unread in chunks]
        self._frames = [
            FrameChunk(decoding.rope, frames, dialog, unread, own.read.dtype) for dialog, unread in chunks
        ]
        sizes = [len(unread) for _, unread in chunks]
        read, looking = (part.view(own.query.shape) for part in (own.read, own.looking))
        self._query, self._keys_values, self._looking, self._read = (
            part.split(sizes) for part in (own.query, own.keys_values, looking, read)
        )

    def attend(self, layer: int) -> None:
        """Each chunk reads its own dialog's text."""
        parts = zip(self._text, self._query, self._keys_values, self._read, strict=True)
        for chunk, query, keys_values, out in parts:
            chunk.attend(layer, query, keys_values, out)

    def look(self, cross: int) -> None:
        """Each chunk looks at its own dialog's frames."""
        for chunk, query, out in zip(self._frames, self._looking, self._read, strict=True):
            chunk.look(cross, query, out)
