"""How one forward of the engine reads: packed tokens of many dialogs, their text in pages, their cameras' rings.

A forward reads either one token for each of many dialogs (a step), or chunks of several dialogs' prompts. Where
things lie is worked out once, on the host; layers then only follow tables.

Letters: N tokens of the forward (rows), H query heads, G key/value heads, R = H / G, d head size, n pages, m pages
of the longest dialog, S tokens a page, C rings, M rows of the ring that has most, F frames, P visual tokens a frame,
T tokens of a chunk.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from model.attention import FrameView
from model.cache import FrameStore, TextStore
from model.dialog import Dialog, Unread
from model.rope import Rope, Turn, rotate

DENSE = 2  # pages that lie in a span this many times as long are read as they lie, else they are gathered


def span(places: Sequence[int]) -> tuple[slice | None, int]:
    """The slice over rising places if it holds few others (else None), and where it starts."""
    first, last = places[0], places[-1]
    near = last - first + 1 <= DENSE * len(places)
    return (slice(first, last + 1) if near else None), first


class TextRows:
    """One token for each of some dialogs: self-attention over their pages, none of which is copied.

    Each page is a row of two batched products, whoever owns it; only scores and sums are brought together.
    """

    def __init__(self, store: TextStore, rows: Sequence[Dialog], device: torch.device) -> None:
        self._store, self._device = store, device
        size = store.page_tokens
        places = sorted(page for dialog in rows for page in dialog.pages if page >= 0)
        view, first = span(places)
        number = {page: page - first if view else at for at, page in enumerate(places)}
        num_pages = view.stop - view.start if view else len(places)
        self._places: slice | Tensor = view or self._tensor(places)
        width = max(sum(page >= 0 for page in dialog.pages) for dialog in rows)
        table = np.zeros((len(rows), width), np.int64)
        hidden = np.ones((len(rows), width, size), np.bool_)
        owner = np.full(num_pages, len(rows), np.int64)  # pages of others in the span: nobody's
        order = np.zeros(num_pages, np.int64)
        for row, dialog in enumerate(rows):
            held = [(at, page) for at, page in enumerate(dialog.pages) if page >= 0]
            for column, (at, page) in enumerate(held):
                table[row, column] = number[page]
                owner[number[page]], order[number[page]] = row, row * width + column
                hidden[row, column] = dialog.hidden(at * size, size)
        self._single = (
            width == 1 and bool((table[:, 0] == np.arange(len(rows))).all()) and len(rows) == num_pages
        )
        self._table, self._owner, self._order = map(self._tensor, (table.reshape(-1), owner, order))
        self._shape = (len(rows), width)
        mask = np.where(hidden, -np.inf, 0.0).astype(np.float32)
        self._mask = self._tensor(mask)[:, None, None]  # [N, 1, 1, m, S]
        self._last = [sum(page >= 0 for page in dialog.pages) - 1 for dialog in rows]
        self._row = self._tensor(np.arange(len(rows)))
        self._last_column = self._tensor(np.array(self._last))
        self._last_page = self._tensor(np.array([dialog.pages[-1] for dialog in rows]))
        self.advance([dialog.length for dialog in rows])

    def advance(self, lengths: Sequence[int]) -> None:
        """Each dialog's next token comes at this place of its text."""
        self._offset = self._tensor(np.array([length % self._store.page_tokens for length in lengths]))
        self._mask[self._row, 0, 0, self._last_column, self._offset] = 0.0

    def attend(self, layer: int, query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """query [N, H, d], keys and values [N, G, d] -> [N, H, d]; the new tokens are kept."""
        num_rows, num_heads, head_dim = query.shape
        groups = keys.shape[1]
        self._store.write(layer, self._last_page, self._offset, keys, values)
        page_keys, page_values = (part[self._places].flatten(0, 1) for part in self._store.layers[layer])
        heads = (query * head_dim**-0.5).view(num_rows, groups, -1, head_dim)
        asked = heads if self._single else heads.index_select(0, self._owner.clamp(max=num_rows - 1))
        scores = torch.bmm(asked.flatten(0, 1), page_keys.transpose(1, 2))  # [n * G, R, S]
        weights = self._softmax(scores.unflatten(0, (-1, groups)))
        read = torch.bmm(weights.flatten(0, 1).to(values.dtype), page_values).view(asked.shape)
        if not self._single:
            read = read.new_zeros(num_rows + 1, *read.shape[1:]).index_add_(0, self._owner, read)[:num_rows]
        return read.reshape(num_rows, num_heads, head_dim)

    def _softmax(self, scores: Tensor) -> Tensor:
        """Over all pages of a dialog: scores [n, G, R, S] -> weights of the same shape."""
        if self._single:
            return (scores.float() + self._mask[:, :, :, 0]).softmax(-1)
        num_rows, width = self._shape
        own = scores.index_select(0, self._table).float().view(num_rows, width, *scores.shape[1:])
        own = own.permute(0, 2, 3, 1, 4) + self._mask  # [N, G, R, m, S]
        weights = own.flatten(-2).softmax(-1).view(own.shape).permute(0, 3, 1, 2, 4)
        return weights.reshape(num_rows * width, *scores.shape[1:]).index_select(0, self._order)

    def _tensor(self, values: object) -> Tensor:
        return torch.as_tensor(values, device=self._device)


class TextChunk:
    """Several tokens of one dialog, after what its pages hold."""

    def __init__(self, store: TextStore, dialog: Dialog, num_new: int, device: torch.device) -> None:
        self._store, size = store, store.page_tokens
        held = [(at, page) for at, page in enumerate(dialog.pages) if page >= 0]
        column = {at: column for column, (at, _) in enumerate(held)}
        self._pages = torch.tensor([page for _, page in held], device=device)
        tokens = np.arange(dialog.length, dialog.length + num_new)
        self._token_pages = torch.tensor(
            [dialog.pages[at] for at in (tokens // size).tolist()], device=device
        )
        self._offsets = torch.from_numpy(tokens % size).to(device)
        hidden = np.concatenate([dialog.hidden(at * size, size) for at, _ in held])
        place = np.array([column[int(at)] for at in tokens // size]) * size + tokens % size
        visible = ~hidden[None] | (np.arange(len(hidden))[None] == place[:, None])
        causal = np.arange(len(hidden))[None] <= place[:, None]
        own = np.isin(np.arange(len(hidden)), place)
        self._mask = torch.from_numpy((visible | own[None]) & causal).to(device)
        self._length = int(place[-1]) + 1

    def attend(self, layer: int, query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """query [T, H, d], keys and values [T, G, d] -> [T, H, d]; the new tokens are kept."""
        self._store.write(layer, self._token_pages, self._offsets, keys, values)
        all_keys, all_values = (
            part[self._pages].transpose(0, 1).flatten(1, 2)[None, :, : self._length]
            for part in self._store.layers[layer]
        )
        mask = self._mask[:, : self._length]
        read = scaled_dot_product_attention(
            query.transpose(0, 1)[None], all_keys, all_values, attn_mask=mask, enable_gqa=True
        )
        return read[0].transpose(0, 1)


class FrameRows:
    """One token for each of some dialogs: all rows of one ring read its one copy of the frames.

    Keys lie turned by (0, y, x) only, so the query is turned by p - f for each frame: each row has its own clock.
    """

    def __init__(self, rope: Rope, store: FrameStore, rows: Sequence[Dialog], device: torch.device) -> None:
        self._store, self._device = store, device
        self._rope = rope
        places = sorted({dialog.ring.place for dialog in rows})
        view, first = span(places)
        number = {place: place - first if view else at for at, place in enumerate(places)}
        num_rings = view.stop - view.start if view else len(places)
        self._places: slice | Tensor = view or torch.tensor(places, device=device)
        members: list[list[int]] = [[] for _ in range(num_rings)]
        for row, dialog in enumerate(rows):
            members[number[dialog.ring.place]].append(row)
        width = max(map(len, members))
        # Rings with fewer rows read for others' rows too, and nobody looks at that.
        padded = [(group + [0] * width)[:width] for group in members]
        self._order = [row for group in padded for row in group]
        back = np.zeros(len(rows), np.int64)
        for at, group in enumerate(members):
            for column, row in enumerate(group):
                back[row] = at * width + column
        straight = len(self._order) == len(rows) and self._order == list(range(len(rows)))
        self._rows = None if straight else torch.tensor(self._order, device=device)
        self._back = torch.from_numpy(back).to(device)
        self._shape = (num_rings, width)
        self.advance(rows)

    def advance(self, rows: Sequence[Dialog]) -> None:
        """The rows' next tokens: where they are on their clocks, and which frames they see."""
        each = [rows[row] for row in self._order]
        ages = np.array([dialog.pending_index for dialog in each])[:, None] - np.array(
            [dialog.ring_index for dialog in each]
        )
        shape = (*self._shape, ages.shape[1])  # [C, M, F]
        cos, sin = (
            part.view(*shape, part.shape[-1]).transpose(1, 2)[:, None, :, :, None]
            for part in self._rope.age(ages, self._device)
        )
        self._turn: Turn = cos, sin  # [C, 1, F, M, 1, d/2]
        self._mask = self._sees = None
        if not all(dialog.sees_all for dialog in each):
            visible = np.array([dialog.visible(dialog.ring.num_arrived - 1) for dialog in each])
            sees = np.asarray(visible.any(-1))
            mask = np.where(visible | ~sees[:, None], 0.0, -np.inf).astype(np.float32)
            self._mask = torch.from_numpy(mask).to(self._device).view(shape)[:, None, :, None, :, None]
            own = np.array([any(dialog.visible(dialog.ring.num_arrived - 1)) for dialog in rows])
            self._sees = None if own.all() else torch.from_numpy(own).to(self._device)[:, None, None]

    def look(self, cross: int, query: Tensor) -> Tensor:
        """query [N, H, d], not yet turned -> what is read of the frames, of the same shape."""
        _, num_heads, head_dim = query.shape
        (rings, width), (keys, values) = self._shape, self._store.rings(cross, self._places)
        _, groups, frames, patches, _ = keys.shape
        heads = query if self._rows is None else query.index_select(0, self._rows)
        heads = heads.view(rings, width, groups, -1, head_dim).transpose(1, 2).unsqueeze(2)
        turned = rotate(heads.expand(-1, -1, frames, -1, -1, -1), self._turn)  # [C, G, F, M, R, d]
        scores = torch.bmm(turned.flatten(0, 2).flatten(1, 2), keys.flatten(0, 2).transpose(1, 2))
        scores = (
            scores.view(rings, groups, frames, -1, patches).transpose(2, 3).float()
        )  # [C, G, M * R, F, P]
        if self._mask is not None:
            scores = (scores.unflatten(2, (width, -1)) + self._mask).flatten(2, 3)
        weights = scores.reshape(rings * groups, -1, frames * patches).softmax(-1).to(values.dtype)
        read = torch.bmm(weights, values.flatten(0, 1).flatten(1, 2))  # [C * G, M * R, d]
        read = read.view(rings, groups, width, -1, head_dim).transpose(1, 2).reshape(-1, num_heads, head_dim)
        read = read if self._rows is None else read.index_select(0, self._back)
        return read if self._sees is None else read * self._sees


class FrameChunk:
    """Several tokens of one dialog look at its ring, each at the frames that were there for it."""

    def __init__(
        self, rope: Rope, store: FrameStore, dialog: Dialog, unread: Sequence[Unread], dtype: torch.dtype
    ) -> None:
        device = store.device
        rows = {newest: dialog.visible(newest) for newest in {token.newest for token in unread}}
        self._store, self._place = store, slice(dialog.ring.place, dialog.ring.place + 1)
        self._view = FrameView(
            rope,
            torch.tensor([[token.place for token in unread]], device=device),
            torch.tensor([dialog.ring_index], device=device),
            torch.tensor([[rows[token.newest] for token in unread]], device=device),
            dtype=dtype,
        )

    def look(self, cross: int, query: Tensor) -> Tensor:
        """query [T, H, d] -> [T, H, d]."""
        keys, values = (part.permute(0, 2, 3, 1, 4) for part in self._store.rings(cross, self._place))
        return self._view.attend(query.transpose(0, 1)[None], keys, values)[0].transpose(0, 1)


class Step:
    """One token for each of some dialogs; made again only when who speaks or where things lie has changed."""

    def __init__(self, rope: Rope, text: TextStore, frames: FrameStore, rows: Sequence[Dialog]) -> None:
        self._rope, self._device = rope, frames.device
        self._text, self._frames = (
            TextRows(text, rows, self._device),
            FrameRows(rope, frames, rows, self._device),
        )
        self._rows, self._tables = rows, self._tables_of(rows)
        self._lengths = [dialog.length for dialog in rows]
        self._place(rows)

    def advance(self, rows: Sequence[Dialog]) -> bool:
        """The same dialogs' next tokens; False if anything else has changed, and a new Step must be made."""
        lengths = [dialog.length for dialog in rows]
        grown = all(0 <= new - old <= 1 for new, old in zip(lengths, self._lengths, strict=False))
        if not grown or len(rows) != len(self._rows) or self._tables_of(rows) != self._tables:
            return False
        self._lengths = lengths
        self._text.advance(lengths)
        self._frames.advance(rows)
        self._place(rows)
        return True

    @staticmethod
    def _tables_of(rows: Sequence[Dialog]) -> object:
        return [(id(dialog), dialog.ring.place, dialog.hole, *dialog.pages) for dialog in rows]

    def _place(self, rows: Sequence[Dialog]) -> None:
        self.tokens = torch.tensor([dialog.pending for dialog in rows], device=self._device)
        index = torch.tensor([dialog.pending_index for dialog in rows], device=self._device)
        cos, sin = self._rope.turn(index)
        self.turn: Turn = cos[:, None], sin[:, None]

    def attend(self, layer: int, query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """See `TextRows.attend`."""
        return self._text.attend(layer, query, keys, values)

    def look(self, cross: int, query: Tensor) -> Tensor:
        """See `FrameRows.look`."""
        return self._frames.look(cross, query)


class Chunks:
    """Parts of several dialogs' prompts, packed into one forward."""

    def __init__(
        self,
        rope: Rope,
        text: TextStore,
        frames: FrameStore,
        chunks: Sequence[tuple[Dialog, Sequence[Unread]]],
        dtype: torch.dtype,
    ) -> None:
        device = frames.device
        tokens = [token for _, unread in chunks for token in unread]
        self.tokens = torch.tensor([token.token_id for token in tokens], device=device)
        cos, sin = rope.turn(torch.tensor([token.place for token in tokens], device=device))
        self.turn: Turn = cos[:, None], sin[:, None]
        self._sizes = [len(unread) for _, unread in chunks]
        self._text = [TextChunk(text, dialog, len(unread), device) for dialog, unread in chunks]
        self._frames = [FrameChunk(rope, frames, dialog, unread, dtype) for dialog, unread in chunks]

    def attend(self, layer: int, query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Each chunk reads its own dialog's text."""
        parts = zip(self._text, *(part.split(self._sizes) for part in (query, keys, values)), strict=True)
        return torch.cat([chunk.attend(layer, q, k, v) for chunk, q, k, v in parts])

    def look(self, cross: int, query: Tensor) -> Tensor:
        """Each chunk looks at its own dialog's frames."""
        parts = zip(self._frames, query.split(self._sizes), strict=True)
        return torch.cat([chunk.look(cross, part) for chunk, part in parts])
