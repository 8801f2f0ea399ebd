"""Where things lie, worked out on the host when a step is made: layers then only follow tables.

Letters: N rows (dialogs), H query heads, n pages, m pages of the dialog that has most, S tokens a page.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from model.engine.dialog import Dialog, Indices
from model.network.layer import KeysValues

DENSE = 2  # pages that lie in a span this many times as long are read as they lie, else they are gathered


class Numbers:
    """Integers that the host writes and the device reads; on a CPU they are the same memory."""

    def __init__(self, shape: Sequence[int], device: torch.device) -> None:
        kept = torch.zeros(*shape, dtype=torch.int64)
        self._sent = None if device.type == "cpu" else kept.pin_memory()
        self.device = kept if self._sent is None else kept.to(device)
        self.host: Indices = (self.device if self._sent is None else self._sent).numpy()

    def send(self) -> None:
        """What the host has written is read from now on."""
        if self._sent is not None:
            self.device.copy_(self._sent, non_blocking=True)


class Span:
    """Some pages of each layer's keys and values: as they lie if few others lie between them, else gathered."""

    def __init__(self, layers: Sequence[KeysValues], places: Sequence[int], device: torch.device) -> None:
        """`places` rise."""
        first, last = places[0], places[-1]
        self._layers, self._gathered = list(layers), None
        self.number = {place: place - first for place in places}  # of a page in the span
        self.count = last - first + 1
        if self.count <= DENSE * len(places):
            self._layers = [(keys[first : last + 1], values[first : last + 1]) for keys, values in layers]
            return
        self.number, self.count = {place: at for at, place in enumerate(places)}, len(places)
        self._places = torch.tensor(places, device=device)
        keys, values = (part.new_empty(self.count, *part.shape[1:]) for part in layers[0])
        self._gathered = keys, values

    def views(self) -> list[KeysValues]:
        """Keys and values of each layer, [count, ...]; the same memory for all of them if they are gathered."""
        return self._layers if self._gathered is None else [self._gathered] * len(self._layers)

    def gather(self, layer: int) -> None:
        """Before a layer's are read."""
        if self._gathered is not None:
            for part, out in zip(self._layers[layer], self._gathered, strict=True):
                torch.index_select(part, 0, self._places, out=out)


class PageTable:
    """Whose pages are which. A page has H lines of scores; a dialog's are those of its pages side by side."""

    def __init__(self, rows: Sequence[Dialog], num_heads: int, page_tokens: int, span: Span) -> None:
        """`span` holds the rows' pages, and may hold others."""
        count, number = span.count, span.number
        held = [[(at, page) for at, page in enumerate(dialog.pages) if page >= 0] for dialog in rows]
        self.width = width = max(map(len, held))
        self.pages = np.full((len(rows), width), count, np.int64)  # [N, m]; `count`: none
        self.owner = np.zeros(count, np.int64)  # [n]; nobody's pages are read for the first row, in vain
        self.hidden = np.ones((count, page_tokens), np.bool_)
        order = np.zeros(count, np.int64)
        for row, (dialog, own) in enumerate(zip(rows, held, strict=True)):
            for column, (at, page) in enumerate(own):
                self.pages[row, column] = each = number[page]
                self.owner[each], order[each] = row, row * width + column
                self.hidden[each] = dialog.masked_tokens(at * page_tokens, page_tokens)
        self.single = self.pages.tolist() == [
            [row] for row in range(count)
        ]  # each page is its row's only one
        self.last = np.array([own[-1][1] for own in held])  # pages that grow, by their numbers in the store
        self.last_number = np.array([number[page] for page in self.last.tolist()])
        heads = np.arange(num_heads)
        # By (row, head, column) the line of a page's scores, and by (page, head) the line of a row's.
        self.of_rows = (self.pages[:, None] * num_heads + heads[:, None]).reshape(-1)
        row, column = order[:, None] // width, order[:, None] % width
        self.of_pages = ((row * num_heads + heads) * width + column).reshape(-1)
