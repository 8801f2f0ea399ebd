"""One token for each of some dialogs looks at its camera's ring; dialogs on one camera read the one copy.

The keys lie turned by (0, y, x); a row's query is turned by p - f for each frame.

Letters: N rows (dialogs), H query heads, G key/value heads, R = H / G, d head size, C rings, M rows of the ring that
has most, F frames, P visual tokens a frame.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from model.engine.dialog import Dialog
from model.network.rope import Rope, is_near
from model.runtime.batch_layout import Numbers, Span
from model.runtime.kv_cache import FrameStore
from model.runtime.packed_model import Buffers


class Places:
    """Which row is where among the rows of its ring. Rings with fewer rows read for the first row too, in vain."""

    def __init__(self, rows: Sequence[Dialog], span: Span) -> None:
        members: list[list[int]] = [[] for _ in range(span.count)]
        for row, dialog in enumerate(rows):
            members[span.number[dialog.ring.page]].append(row)
        self.width = width = max(map(len, members))
        self.order = [row for group in members for row in (group + [0] * width)[:width]]
        self.back = [0] * len(rows)
        for ring, group in enumerate(members):
            for column, row in enumerate(group):
                self.back[row] = ring * width + column
        self.straight = self.order == list(range(len(rows)))


class FrameRows:
    """The rings of some dialogs, and what is written on the way from their queries to what is read."""

    def __init__(self, rope: Rope, store: FrameStore, rows: Sequence[Dialog], buffers: Buffers) -> None:
        self._rope, self._buffers, self._device = rope, buffers, store.device
        self._span = Span(store.layers, sorted({dialog.ring.page for dialog in rows}), store.device)
        self._places = Places(rows, self._span)
        self._rows = [rows[row] for row in self._places.order]
        _, self._groups, self._frames, self._patches, self._head_dim = store.layers[0][0].shape
        self._ratio = buffers.query.shape[1] // self._groups
        self._make_queries()
        self._make_scores()
        self._ages = Numbers((self._span.count, self._frames, self._places.width, self._ratio), self._device)
        self._arrived: list[int] = []  # frames that had come to each row's ring
        self._masked = False  # whether some row does not see all of a ring
        self.advance()

    def _make_queries(self) -> None:
        """Rows as they lie by ring, and their queries turned for each frame."""
        rings, groups, frames, width = self._span.count, self._groups, self._frames, self._places.width
        size, wide = self._ratio * self._head_dim, groups * self._ratio * self._head_dim
        straight = self._places.straight
        self._order = torch.tensor(self._places.order, device=self._device)
        self._back = torch.tensor(self._places.back, device=self._device)
        self._query = self._buffers.looking if straight else self._made(rings * width, wide)
        self._filled = self._buffers.read if straight else self._made(rings * width, wide)
        partner = torch.empty_like(self._query)
        self._halves, self._partners = (
            part.view(rings * width, -1, 2, self._head_dim // 2).unbind(2) for part in (self._query, partner)
        )
        by_ring = (rings, width, groups, 1, size)
        self._queries, self._swapped = (
            part.view(by_ring).permute(0, 2, 3, 1, 4) for part in (self._query, partner)
        )  # [C, G, 1, M, R * d]
        turns = self._made(2, rings, 1, frames, width, size, dtype=torch.float32)
        self._cos, self._sin = turns
        self._turns = turns.view(2, -1, self._head_dim)
        self._turned = self._made(rings, groups, frames, width, size)
        exact = self._turned.dtype == torch.float32  # if not, it is rounded once, at the end
        self._half_turned = self._turned if exact else torch.empty_like(self._turned, dtype=torch.float32)

    def _make_scores(self) -> None:
        """The longer one of a ring's queries and a frame's patches lies innermost: that is faster."""
        rings, groups, frames, patches = self._span.count, self._groups, self._frames, self._patches
        lines, size = self._places.width * self._ratio, self._head_dim
        self._many = lines >= patches
        by_frame = (rings * groups * frames, lines, size)
        self._turned_lines = self._turned.view(by_frame)
        views = self._span.views()
        self._layers = [
            (keys.flatten(0, 2), values.flatten(2, 3).flatten(0, 1)) for keys, values in views
        ]  # [C * G * F, P, d], [C * G, F * P, d]
        self._mask_of_lines = self._made(rings, frames, lines)
        self._sees = self._made(len(self._buffers.read), 1)
        if self._many:
            self._scores = self._made(rings * groups * frames, patches, lines)
            self._by_patch = self._scores.view(rings, groups, frames, patches, lines)
            self._mask = self._mask_of_lines[:, None, :, None]
            self._joint = self._scores.view(rings * groups, frames * patches, lines)
            self._joint_weights = torch.empty_like(self._joint)
            self._weights = self._joint_weights.mT
        else:
            self._scores = self._made(rings * groups * frames, lines, patches)
            self._by_patch = self._scores.view(rings, groups, frames, lines, patches).transpose(2, 3)
            self._mask = self._mask_of_lines.mT[:, None, :, :, None]
            self._joint = self._made(rings * groups, lines, frames * patches)
            self._side_by_side = self._joint.view(rings, groups, lines, frames, patches)
            self._weights = self._joint_weights = torch.empty_like(self._joint)
        # With one row a ring, what is read lies as the rows do.
        alone = self._places.width == 1
        read = self._filled if alone else self._made(rings, groups, lines, size)
        self._read = read.view(rings * groups, lines, size)
        self._read_by_row = (
            None if alone else read.view(rings, groups, -1, self._ratio * size).transpose(1, 2)
        )

    def advance(self) -> bool:
        """The rows' next tokens: where they are on their clocks, and which frames they see.

        Returns whether they see as before: all of full rings, or not all.
        """
        arrived = [dialog.ring.num_arrived for dialog in self._rows]
        before = self._masked if self._arrived else None
        if arrived != self._arrived:
            self._arrived, self._index = arrived, np.stack([dialog.ring_frame_index for dialog in self._rows])
            self._see()
        ages = np.array([dialog.last_temporal_index for dialog in self._rows])[:, None] - self._index
        if self._masked:
            ages[self._hidden] = 0
        rings, width = self._span.count, self._places.width
        self._ages.host[:] = ages.reshape(rings, width, -1).transpose(0, 2, 1)[..., None]
        self._ages.send()
        self._rope.turns(self._ages.device.view(-1), self._turns, near=is_near(ages))
        return before is None or before == self._masked

    def _see(self) -> None:
        self._masked = not all(dialog.sees_whole_ring for dialog in self._rows)
        if not self._masked:
            return
        visible = np.array([dialog.visible_slots(dialog.ring.num_arrived - 1) for dialog in self._rows])
        self._hidden = ~visible
        sees = np.asarray(visible.any(1))
        mask = torch.from_numpy(np.where(visible | ~sees[:, None], 0.0, -np.inf)).to(self._mask.device)
        own = mask.view(self._span.count, -1, 1, self._frames).expand(-1, -1, self._ratio, -1)
        self._mask_of_lines.copy_(own.flatten(1, 2).mT)
        self._sees.copy_(torch.from_numpy(sees[self._places.back])[:, None])

    def look(self, cross: int) -> None:
        """See `Reader.look`."""
        self._span.gather(cross)
        self._turn()
        keys, values = self._layers[cross]
        if self._many:
            self._score(keys, self._turned_lines.mT)
            if self._masked:
                self._by_patch.add_(self._mask)
        else:
            self._score(self._turned_lines, keys.mT)
            if self._masked:
                torch.add(self._by_patch, self._mask, out=self._side_by_side)
            else:
                self._side_by_side.copy_(self._by_patch)
        torch.softmax(self._joint, 1 if self._many else -1, out=self._joint_weights)
        torch.bmm(self._weights, values, out=self._read)
        if self._read_by_row is not None:
            self._filled.view(self._read_by_row.shape).copy_(self._read_by_row)
        if not self._places.straight:
            torch.index_select(self._filled, 0, self._back, out=self._buffers.read)
        if self._masked:
            self._buffers.read.mul_(self._sees)

    def _score(self, left: Tensor, right: Tensor) -> None:
        scale = self._head_dim**-0.5
        torch.baddbmm(self._scores, left, right, beta=0, alpha=scale, out=self._scores)

    def _turn(self) -> None:
        """Each row's query, turned for each frame."""
        if not self._places.straight:
            torch.index_select(self._buffers.looking, 0, self._order, out=self._query)
        (first, second), (left, right) = self._halves, self._partners
        left.copy_(second)
        right.copy_(first)
        torch.mul(self._swapped, self._sin, out=self._half_turned)
        torch.addcmul(self._half_turned, self._queries, self._cos, out=self._turned)

    def _made(self, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        return torch.zeros(*shape, dtype=dtype or self._buffers.read.dtype, device=self._device)
