"""Decode's attention to text: one token for each row, over its pages, none of which is copied.

Each page is one entry of two batched products, whichever row owns it; only scores and sums are reordered.

Letters: N rows (dialogs), H query heads, G key/value heads, R = H / G, d head size, n selected
pages, m pages of the row that has most, S tokens a page.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from model.engine.dialog import Dialog
from model.runtime.batch_layout import HostDeviceTensor, PageSelection, PageTable
from model.runtime.kv_cache import TextKVCache
from model.runtime.packed_model import Buffers


class DecodeTextAttention:
    """The rows' pages, and all memory between their queries and what is read. `buffers` hold the queries."""

    def __init__(self, cache: TextKVCache, rows: Sequence[Dialog], buffers: Buffers) -> None:
        self._cache, self._rows, self._buffers = cache, rows, buffers
        num_rows, num_heads, self._head_dim = buffers.query.shape
        self._groups, self._size = cache.num_groups, cache.page_tokens
        pages = sorted(page for dialog in rows for page in dialog.pages if page >= 0)
        self._selection = PageSelection(cache.layers, pages, cache.device)
        self._table = PageTable(rows, num_heads, cache.page_tokens, self._selection)
        self._lines = HostDeviceTensor((num_rows, 2 * cache.num_groups), cache.device)
        self._new_mask = HostDeviceTensor((num_rows, cache.num_groups), cache.device)
        self._query = buffers.heads[:, : num_heads * self._head_dim]
        self._make_pages(num_heads)
        if not self._table.one_page_a_row:
            self._make_rows(num_rows, num_heads)

    def _make_pages(self, num_heads: int) -> None:
        """What each selected page has."""
        table, count, groups = self._table, self._selection.num_pages, self._groups
        mask = self._zeros(count, groups, self._size)
        mask.masked_fill_(torch.from_numpy(table.hidden).to(mask.device)[:, None], -torch.inf)
        self._mask = mask.view(count * groups, 1, self._size)
        self._row_of_page = self._on_device(table.row_of_page)
        self._page_query = self._zeros(count, num_heads * self._head_dim)
        shape = (count * groups, num_heads // groups, -1)
        self._page_query_heads = self._page_query.view(shape)
        # The last page stands for none: no score reaches it, and nothing is read there.
        self._score_lines = self._zeros((count + 1) * num_heads, self._size).fill_(-torch.inf)
        self._scores = self._score_lines[:-num_heads].view(shape)
        self._weight_lines = self._zeros(count * num_heads, self._size)
        self._weights = self._weight_lines.view(shape)
        self._parts = self._zeros(count + 1, num_heads * self._head_dim)
        self._read = (self._buffers.read if table.one_page_a_row else self._parts[:-1]).view(shape)
        views = self._selection.views()
        self._layers = [(keys.flatten(0, 1).mT, values.flatten(0, 1)) for keys, values in views]

    def _make_rows(self, num_rows: int, num_heads: int) -> None:
        """What each row has, with its pages side by side."""
        table, width = self._table, self._table.width
        self._pages = self._on_device(table.pages.reshape(-1))
        self._page_lines = self._on_device(table.page_lines)
        self._row_lines = self._on_device(table.row_lines)
        self._row_score_lines = self._zeros(num_rows * num_heads * width, self._size)
        self._row_scores = self._row_score_lines.view(num_rows * num_heads, width * self._size)
        self._row_weights = torch.empty_like(self._row_scores)
        self._row_weight_lines = self._row_weights.view(-1, self._size)
        self._row_parts = self._zeros(num_rows * width, num_heads * self._head_dim)
        self._summands = self._row_parts.view(num_rows, width, -1)

    def advance(self) -> None:
        """Make room for each dialog's next token, at the end of its text."""
        offsets = np.array([dialog.num_computed_tokens % self._size for dialog in self._rows])
        self._lines.host[:] = self._cache.lines(self._table.last, offsets)
        first = self._table.last_number * (self._groups * self._size) + offsets
        np.add.outer(first, np.arange(self._groups) * self._size, out=self._new_mask.host)
        self._lines.copy_to_device()
        self._new_mask.copy_to_device()
        self._mask.view(-1).index_fill_(0, self._new_mask.device.view(-1), 0.0)

    def attend(self, layer: int) -> Tensor:
        """The buffers' queries read their rows' text, the buffers' own keys and values included -> [N, H * d]."""
        self._cache.write(layer, self._lines.device, self._buffers.keys_values)
        self._selection.gather(layer)
        keys, values = self._layers[layer]
        torch.index_select(self._query, 0, self._row_of_page, out=self._page_query)
        torch.baddbmm(self._mask, self._page_query_heads, keys, alpha=self._head_dim**-0.5, out=self._scores)
        if self._table.one_page_a_row:
            torch.softmax(self._scores, -1, out=self._weights)
            torch.bmm(self._weights, values, out=self._read)
            return self._buffers.read
        torch.index_select(self._score_lines, 0, self._page_lines, out=self._row_score_lines)
        torch.softmax(self._row_scores, -1, out=self._row_weights)
        torch.index_select(self._row_weight_lines, 0, self._row_lines, out=self._weight_lines)
        torch.bmm(self._weights, values, out=self._read)
        torch.index_select(self._parts, 0, self._pages, out=self._row_parts)
        return torch.sum(self._summands, 1, out=self._buffers.read)

    def _zeros(self, *shape: int) -> Tensor:
        return torch.zeros(*shape, dtype=self._buffers.read.dtype, device=self._cache.device)

    def _on_device(self, table: object) -> Tensor:
        return torch.as_tensor(table, device=self._cache.device)
