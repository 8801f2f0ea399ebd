"""Where the pages and rows of a batch lie, worked out on the host when a step is made: layers then only use tables.

Letters: N rows (dialogs), H query heads, n selected pages, m pages of the row that has most, S tokens a page.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from model.engine.dialog import Dialog, Indices
from model.network.attention import KeysValues

MAX_SPAN = 2  # pages in a span up to this many times as long are read in place, else they are gathered


class HostDeviceTensor:
    """Integers that the host writes and the device reads; on a CPU they are the same memory."""

    def __init__(self, shape: Sequence[int], device: torch.device) -> None:
        kept = torch.zeros(*shape, dtype=torch.int64)
        self._pinned = None if device.type == "cpu" else kept.pin_memory()
        self.device = kept if self._pinned is None else kept.to(device)
        self.host: Indices = (self.device if self._pinned is None else self._pinned).numpy()

    def copy_to_device(self) -> None:
        """The device reads from now on what the host has written."""
        if self._pinned is not None:
            self.device.copy_(self._pinned, non_blocking=True)


class PageSelection:
    """Some pages of each layer's keys and values: a view if few other pages lie between them, else gathered."""

    def __init__(self, layers: Sequence[KeysValues], pages: Sequence[int], device: torch.device) -> None:
        """`pages` in rising order."""
        first, last = pages[0], pages[-1]
        self._layers, self._gathered = list(layers), None
        self.number = {page: page - first for page in pages}  # of a page in the selection
        self.num_pages = last - first + 1  # those that only lie between them included
        if self.num_pages <= MAX_SPAN * len(pages):
            self._layers = [(keys[first : last + 1], values[first : last + 1]) for keys, values in layers]
            return
        self.number, self.num_pages = {page: at for at, page in enumerate(pages)}, len(pages)
        self._pages = torch.tensor(pages, device=device)
        keys, values = (part.new_empty(self.num_pages, *part.shape[1:]) for part in layers[0])
        self._gathered = keys, values

    def views(self) -> list[KeysValues]:
        """Keys and values of each layer, [n, ...]; the same memory for all of them if they are gathered."""
        return self._layers if self._gathered is None else [self._gathered] * len(self._layers)

    def gather(self, layer: int) -> None:
        """Copy a layer's, if they are gathered, before they are read."""
        if self._gathered is not None:
            for part, out in zip(self._layers[layer], self._gathered, strict=True):
                torch.index_select(part, 0, self._pages, out=out)


class PageTable:
    """Which pages belong to which row. A page has H lines of scores; a row has those of its pages side by side."""

    def __init__(
        self, rows: Sequence[Dialog], num_heads: int, page_tokens: int, selection: PageSelection
    ) -> None:
        """`selection` holds the rows' pages, and may hold others."""
        num_pages, number = selection.num_pages, selection.number
        held = [[(at, page) for at, page in enumerate(dialog.pages) if page >= 0] for dialog in rows]
        self.width = width = max(map(len, held))
        self.pages = np.full((len(rows), width), num_pages, np.int64)  # [N, m]; `num_pages`: none
        self.row_of_page = np.zeros(
            num_pages, np.int64
        )  # [n]; unused pages are computed for row 0, and ignored
        self.hidden = np.ones((num_pages, page_tokens), np.bool_)
        order = np.zeros(num_pages, np.int64)
        for row, (dialog, own) in enumerate(zip(rows, held, strict=True)):
            for column, (at, page) in enumerate(own):
                self.pages[row, column] = each = number[page]
                self.row_of_page[each], order[each] = row, row * width + column
                self.hidden[each] = dialog.masked_tokens(at * page_tokens, page_tokens)
        self.one_page_a_row = self.pages.tolist() == [[row] for row in range(num_pages)]
        self.last = np.array([own[-1][1] for own in held])  # pages that grow, by their numbers in the cache
        self.last_number = np.array([number[page] for page in self.last.tolist()])
        heads = np.arange(num_heads)
        # By (row, head, column) the line of a page's scores, and by (page, head) the line of a row's.
        self.page_lines = (self.pages[:, None] * num_heads + heads[:, None]).reshape(-1)
        row, column = order[:, None] // width, order[:, None] % width
        self.row_lines = ((row * num_heads + heads) * width + column).reshape(-1)
