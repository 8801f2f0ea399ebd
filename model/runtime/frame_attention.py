"""Decode's attention to frames: one token for each row, over its ring; rows on one camera read the one copy.

Keys are kept rotated by (0, y, x). The rest of the rotation, p - f, is relative: here the query is rotated by it, for
each frame, and the keys are read as they are.

Letters: N rows (dialogs), H query heads, G key/value heads, R = H / G, d head size, C rings, M rows of the ring that
has most, F frames, P visual tokens a frame.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from model.engine.dialog import Dialog
from model.network.rope import RotaryEmbedding, RotateInto, in_table
from model.runtime.batch_layout import HostDeviceTensor, PageSelection
from model.runtime.kv_cache import FrameKVCache
from model.runtime.packed_model import Buffers


class RingLayout:
    """The rows sorted by their rings, each ring filled up to M rows; row 0 is computed once more where one misses."""

    def __init__(self, rows: Sequence[Dialog], selection: PageSelection) -> None:
        members: list[list[int]] = [[] for _ in range(selection.num_pages)]
        for row, dialog in enumerate(rows):
            members[selection.number[dialog.ring.page]].append(row)
        self.width = width = max(map(len, members))
        self.rows = [row for group in members for row in (group + [0] * width)[:width]]  # by ring, [C * M]
        self.by_row = [0] * len(rows)  # where each row is in `rows`
        for ring, group in enumerate(members):
            for column, row in enumerate(group):
                self.by_row[row] = ring * width + column
        self.unchanged = self.rows == list(range(len(rows)))  # the rows lie like this already


class DecodeFrameAttention:
    """The rows' rings, and all memory between their queries and what is read. `buffers` hold the queries."""

    def __init__(
        self, rope: RotaryEmbedding, cache: FrameKVCache, rows: Sequence[Dialog], buffers: Buffers
    ) -> None:
        self._rope, self._buffers, self._device = rope, buffers, cache.device
        rings = sorted({dialog.ring.page for dialog in rows})
        self._selection = PageSelection(cache.layers, rings, cache.device)
        self._layout = RingLayout(rows, self._selection)
        self._rows = [rows[row] for row in self._layout.rows]
        self._num_rings, self._width = self._selection.num_pages, self._layout.width
        _, self._groups, self._frames, self._patches, self._head_dim = cache.layers[0][0].shape
        self._ratio = buffers.query.shape[1] // self._groups
        self._make_queries()
        self._make_scores()
        ages = (self._num_rings, self._frames, self._width, self._ratio)
        self._ages = HostDeviceTensor(ages, self._device)  # p - f
        self._num_arrived: list[int] = []  # frames that have arrived at each row's ring
        self._masked = False  # whether some row does not see all of a ring
        self.advance()

    def _make_queries(self) -> None:
        """The queries by ring, and each one rotated for each frame."""
        rings, groups, frames, width = self._num_rings, self._groups, self._frames, self._width
        heads, unchanged = groups * self._ratio * self._head_dim, self._layout.unchanged
        self._rows_by_ring = torch.tensor(self._layout.rows, device=self._device)
        self._by_row = torch.tensor(self._layout.by_row, device=self._device)
        self._query = self._buffers.frame_heads if unchanged else self._zeros(rings * width, heads)
        self._read_by_ring = self._buffers.read if unchanged else self._zeros(rings * width, heads)
        shape = (self._ratio, self._head_dim)
        query = self._query.view(rings, width, groups, 1, *shape).permute(0, 2, 3, 1, 4, 5)
        self._rotation = self._zeros(2, rings, 1, frames, width, *shape, dtype=torch.float32)
        self._rotated = self._zeros(rings, groups, frames, width, *shape)
        self._rotate = RotateInto(query, self._rotation, self._rotated)

    def _make_scores(self) -> None:
        """The longer one of a ring's queries and a frame's patches lies innermost: that is faster."""
        rings, groups, frames, patches = self._num_rings, self._groups, self._frames, self._patches
        lines, size = self._width * self._ratio, self._head_dim
        self._lines_innermost = lines >= patches
        self._lines = self._rotated.view(rings * groups * frames, lines, size)
        views = self._selection.views()
        self._layers = [
            (keys.flatten(0, 2), values.flatten(2, 3).flatten(0, 1)) for keys, values in views
        ]  # [C * G * F, P, d], [C * G, F * P, d]
        self._mask_of_lines = self._zeros(rings, frames, lines)
        self._sees = self._zeros(len(self._buffers.read), 1)
        if self._lines_innermost:
            self._scores = self._zeros(rings * groups * frames, patches, lines)
            self._by_patch = self._scores.view(rings, groups, frames, patches, lines)
            self._mask = self._mask_of_lines[:, None, :, None]
            self._joint = self._scores.view(rings * groups, frames * patches, lines)
            self._joint_weights = torch.empty_like(self._joint)
            self._weights = self._joint_weights.mT
        else:
            self._scores = self._zeros(rings * groups * frames, lines, patches)
            self._by_patch = self._scores.view(rings, groups, frames, lines, patches).transpose(2, 3)
            self._mask = self._mask_of_lines.mT[:, None, :, :, None]
            self._joint = self._zeros(rings * groups, lines, frames * patches)
            self._by_line = self._joint.view(rings, groups, lines, frames, patches)
            self._weights = self._joint_weights = torch.empty_like(self._joint)
        # With one row a ring, what is read lies as the rows do.
        single = self._width == 1
        read = self._read_by_ring if single else self._zeros(rings, groups, lines, size)
        self._read = read.view(rings * groups, lines, size)
        by_row = (rings, groups, self._width, self._ratio * size)
        self._read_rows_first = None if single else read.view(by_row).transpose(1, 2)

    def advance(self) -> bool:
        """Prepare the rows' next tokens: their positions, and which frames they see.

        Returns whether they see as before: all of full rings, or not all.
        """
        num_arrived = [dialog.ring.num_arrived for dialog in self._rows]
        before = self._masked if self._num_arrived else None
        if num_arrived != self._num_arrived:
            self._num_arrived = num_arrived
            self._frame_index = np.stack([dialog.ring_frame_index for dialog in self._rows])
            self._update_mask()
        ages = np.array([dialog.last_temporal_index for dialog in self._rows])[:, None] - self._frame_index
        if self._masked:
            ages[self._hidden] = 0
        by_ring = ages.reshape(self._num_rings, self._width, -1)
        self._ages.host[:] = by_ring.transpose(0, 2, 1)[..., None]
        self._ages.copy_to_device()
        out = self._rotation.view(2, -1, self._head_dim)
        self._rope.write_rotation(self._ages.device.view(-1), out, in_table=in_table(ages))
        return before is None or before == self._masked

    def _update_mask(self) -> None:
        self._masked = not all(dialog.sees_whole_ring for dialog in self._rows)
        if not self._masked:
            return
        visible = np.array([dialog.visible_slots(dialog.ring.num_arrived - 1) for dialog in self._rows])
        self._hidden = ~visible
        sees = np.asarray(visible.any(1))
        mask = torch.from_numpy(np.where(visible | ~sees[:, None], 0.0, -np.inf)).to(self._mask.device)
        own = mask.view(self._num_rings, -1, 1, self._frames).expand(-1, -1, self._ratio, -1)
        self._mask_of_lines.copy_(own.flatten(1, 2).mT)
        self._sees.copy_(torch.from_numpy(sees[self._layout.by_row])[:, None])

    def attend(self, cross: int) -> Tensor:
        """The buffers' frame queries, not rotated, read their rings -> [N, H * d]."""
        self._selection.gather(cross)
        if not self._layout.unchanged:
            torch.index_select(self._buffers.frame_heads, 0, self._rows_by_ring, out=self._query)
        self._rotate()
        keys, values = self._layers[cross]
        if self._lines_innermost:
            self._score(keys, self._lines.mT)
            if self._masked:
                self._by_patch.add_(self._mask)
        else:
            self._score(self._lines, keys.mT)
            if self._masked:
                torch.add(self._by_patch, self._mask, out=self._by_line)
            else:
                self._by_line.copy_(self._by_patch)
        torch.softmax(self._joint, 1 if self._lines_innermost else -1, out=self._joint_weights)
        torch.bmm(self._weights, values, out=self._read)
        if self._read_rows_first is not None:
            self._read_by_ring.view(self._read_rows_first.shape).copy_(self._read_rows_first)
        if not self._layout.unchanged:
            torch.index_select(self._read_by_ring, 0, self._by_row, out=self._buffers.read)
        if self._masked:
            self._buffers.read.mul_(self._sees)
        return self._buffers.read

    def _score(self, left: Tensor, right: Tensor) -> None:
        scale = self._head_dim**-0.5
        torch.baddbmm(self._scores, left, right, beta=0, alpha=scale, out=self._scores)

    def _zeros(self, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        return torch.zeros(*shape, dtype=dtype or self._buffers.read.dtype, device=self._device)
