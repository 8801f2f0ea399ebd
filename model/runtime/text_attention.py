"""Self-attention of one token for each of some dialogs, over their pages, none of which is copied.

Each page is a row of two batched products, whoever owns it; only scores and sums are brought together.

Letters: N rows (dialogs), H query heads, G key/value heads, R = H / G, d head size, n pages, m pages of the dialog
that has most, S tokens a page.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from model.engine.dialog import Dialog
from model.runtime.batch_layout import Numbers, PageTable, Span
from model.runtime.kv_cache import TextStore
from model.runtime.packed_model import Buffers


class TextRows:
    """The pages of some dialogs, and what is written on the way from their queries to what is read."""

    def __init__(self, store: TextStore, rows: Sequence[Dialog], buffers: Buffers) -> None:
        self._store, self._rows, self._buffers = store, rows, buffers
        num_rows, num_heads, self._head_dim = buffers.query.shape
        self._groups, self._size = store.num_groups, store.page_tokens
        places = sorted(page for dialog in rows for page in dialog.pages if page >= 0)
        self._span = Span(store.layers, places, store.device)
        self._table = PageTable(rows, num_heads, store.page_tokens, self._span)
        self._lines = Numbers((num_rows, 2 * store.num_groups), store.device)
        self._newest = Numbers((num_rows, store.num_groups), store.device)
        self._query = buffers.heads[:, : num_heads * self._head_dim]
        self._make_pages(num_heads)
        if not self._table.single:
            self._make_rows(num_rows, num_heads)

    def _make_pages(self, num_heads: int) -> None:
        """What each page of the span has."""
        table, count, groups = self._table, self._span.count, self._groups
        mask = self._made(count, groups, self._size)
        mask.masked_fill_(torch.from_numpy(table.hidden).to(mask.device)[:, None], -torch.inf)
        self._mask = mask.view(count * groups, 1, self._size)
        self._owner = self._on_device(table.owner)
        self._asked = self._made(count, num_heads * self._head_dim)
        shape = (count * groups, num_heads // groups, -1)
        self._asked_heads = self._asked.view(shape)
        # The last page stands for none: no score reaches it, and nothing is read there.
        self._score_lines = self._made((count + 1) * num_heads, self._size).fill_(-torch.inf)
        self._scores = self._score_lines[:-num_heads].view(shape)
        self._weight_lines = self._made(count * num_heads, self._size)
        self._weights = self._weight_lines.view(shape)
        self._parts = self._made(count + 1, num_heads * self._head_dim)
        self._read = (self._buffers.read if table.single else self._parts[:-1]).view(shape)
        views = self._span.views()
        self._layers = [(keys.flatten(0, 1).mT, values.flatten(0, 1)) for keys, values in views]

    def _make_rows(self, num_rows: int, num_heads: int) -> None:
        """What each row has, its pages side by side."""
        table, width = self._table, self._table.width
        self._pages = self._on_device(table.pages.reshape(-1))
        self._of_rows, self._of_pages = self._on_device(table.of_rows), self._on_device(table.of_pages)
        self._own_lines = self._made(num_rows * num_heads * width, self._size)
        self._own = self._own_lines.view(num_rows * num_heads, width * self._size)
        self._own_weights = torch.empty_like(self._own)
        self._own_weight_lines = self._own_weights.view(-1, self._size)
        self._own_parts = self._made(num_rows * width, num_heads * self._head_dim)
        self._summands = self._own_parts.view(num_rows, width, -1)

    def advance(self) -> None:
        """Each dialog's next token comes at the end of its text."""
        offsets = np.array([dialog.num_computed_tokens % self._size for dialog in self._rows])
        self._lines.host[:] = self._store.lines(self._table.last, offsets)
        first = self._table.last_number * (self._groups * self._size) + offsets
        np.add.outer(first, np.arange(self._groups) * self._size, out=self._newest.host)
        self._lines.send()
        self._newest.send()
        self._mask.view(-1).index_fill_(0, self._newest.device.view(-1), 0.0)

    def attend(self, layer: int) -> None:
        """See `Reader.attend`."""
        self._store.write(layer, self._lines.device, self._buffers.keys_values)
        self._span.gather(layer)
        keys, values = self._layers[layer]
        torch.index_select(self._query, 0, self._owner, out=self._asked)
        torch.baddbmm(self._mask, self._asked_heads, keys, alpha=self._head_dim**-0.5, out=self._scores)
        if self._table.single:
            torch.softmax(self._scores, -1, out=self._weights)
            torch.bmm(self._weights, values, out=self._read)
            return
        torch.index_select(self._score_lines, 0, self._of_rows, out=self._own_lines)
        torch.softmax(self._own, -1, out=self._own_weights)
        torch.index_select(self._own_weight_lines, 0, self._of_pages, out=self._weight_lines)
        torch.bmm(self._weights, values, out=self._read)
        torch.index_select(self._parts, 0, self._pages, out=self._own_parts)
        torch.sum(self._summands, 1, out=self._buffers.read)

    def _made(self, *shape: int) -> Tensor:
        return torch.zeros(*shape, dtype=self._buffers.read.dtype, device=self._store.device)

    def _on_device(self, table: object) -> Tensor:
        return torch.as_tensor(table, device=self._store.device)
