"""Parallel 3D-RoPE (paper, section 2.1): rotary embeddings of (time, height, width).

Letters: P visual tokens a frame, d head size. Pairs are (i, i + d/2), as in Hugging Face's Qwen2. The first pairs
rotate with time, the next with height, the last with width: for d = 128, 16, 24 and 24 of 64 pairs.
A text token at position p rotates by (p, p, p), a visual token by (f, f + y, f + x) = (f, f, f) + (0, y, x). So a text
position and a frame's f are the same kind of rotation, and the rest of a visual token, (0, y, x), never changes.

A rotation is one float32 tensor [2, ..., d]: the cosines, and the sines as (-sin, sin).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

TABLE_SIZE = 4096  # positions whose rotations are kept in a table


def in_table(positions: npt.ArrayLike) -> bool:
    """Whether the rotations of all these positions are in the table."""
    return bool(np.min(positions) >= 0 and np.max(positions) < TABLE_SIZE)


def sections(head_dim: int) -> tuple[int, int, int]:
    """Pairs that rotate with time, height and width."""
    pairs = head_dim // 2
    time = pairs // 4
    height = (pairs - time) // 2
    return time, height, pairs - time - height


class RotaryEmbedding:
    """Rotations of positions. Not a module: it has no weights, and its small tables are made where they are used."""

    def __init__(self, *, head_dim: int, theta: float, grid: int) -> None:
        """`grid`: visual tokens along one side of a frame."""
        self.head_dim, self.theta, self.grid = head_dim, theta, grid
        self._frequencies: dict[torch.device, Tensor] = {}
        self._grids: dict[torch.device, Tensor] = {}
        self._tables: dict[torch.device, Tensor] = {}

    def rotation(self, positions: Tensor) -> Tensor:
        """Temporal positions [...], equal in all three sections -> rotation [2, ..., d].

        Angles are float64: a position may be large after days, and float32 would lose the fast pairs.
        """
        return self._rotation(positions.unsqueeze(-1) * self._frequency(positions.device))

    def write_rotation(self, positions: Tensor, out: Tensor, *, in_table: bool) -> None:
        """The same, written to `out` [2, ..., d], for positions [...].

        `in_table`: all positions are from 0 to below TABLE_SIZE, as most are, and are looked up.
        """
        if in_table:
            for part, table in zip(out, self._table(positions.device), strict=True):
                torch.index_select(table, 0, positions, out=part)
        else:
            out.copy_(self.rotation(positions))

    def grid_rotation(self, device: torch.device) -> Tensor:
        """The rotation by (0, y, x) of a frame's visual tokens, [2, P, d]."""
        if device not in self._grids:
            self._grids[device] = self._grid_rotation(device)
        return self._grids[device]

    @torch.inference_mode(False)  # kept, and used in training as well
    def _grid_rotation(self, device: torch.device) -> Tensor:
        time, height, width = sections(self.head_dim)
        number = torch.arange(self.grid**2, device=device)
        zero, y, x = number * 0, number // self.grid, number % self.grid
        steps = torch.stack([zero] * time + [y] * height + [x] * width, -1)
        return self._rotation(steps * self._frequency(device))

    def _table(self, device: torch.device) -> Tensor:
        if device not in self._tables:
            self._tables[device] = self.rotation(torch.arange(TABLE_SIZE, device=device))
        return self._tables[device]

    @torch.inference_mode(False)
    def _frequency(self, device: torch.device) -> Tensor:
        if device not in self._frequencies:
            pairs = torch.arange(0, self.head_dim, 2, dtype=torch.float64, device=device)
            self._frequencies[device] = self.theta ** (-pairs / self.head_dim)
        return self._frequencies[device]

    @staticmethod
    def _rotation(angles: Tensor) -> Tensor:
        cos, sin = angles.cos(), angles.sin()
        return torch.stack([torch.cat([cos, cos], -1), torch.cat([-sin, sin], -1)]).float()


class RotateInto:
    """The rotation itself: reads `x`, writes `out`, as often as it is called. Nothing is allocated by a call."""

    def __init__(self, x: Tensor, rotation: Tensor, out: Tensor) -> None:
        """x [..., d] and `rotation` [2, ..., d] broadcast to `out`, which may be `x` itself."""
        exact = torch.promote_types(out.dtype, rotation.dtype)  # bfloat16 is rounded once, at the end
        apart = out is not x and out.dtype == exact
        self._x, self._out = x, out
        self._product = out if apart else torch.empty_like(out, dtype=exact)
        self._cos, self._sin = rotation
        self._sin_halves = self._sin.chunk(2, -1)
        # Where one `x` is rotated many times, its halves are swapped once for all of them.
        self._swapped = None if x.shape == out.shape else torch.empty_like(x)
        target = self._product if self._swapped is None else self._swapped
        self._halves, self._target_halves = x.chunk(2, -1), target.chunk(2, -1)

    def __call__(self) -> Tensor:
        """Rotate what `x` and the rotation hold now; returns `out`."""
        (first, second), (left, right) = self._halves, self._target_halves
        if self._swapped is None:
            torch.mul(second, self._sin_halves[0], out=left)
            torch.mul(first, self._sin_halves[1], out=right)
        else:
            left.copy_(second)
            right.copy_(first)
            torch.mul(self._swapped, self._sin, out=self._product)
        return torch.addcmul(self._product, self._x, self._cos, out=self._out)


def rotate(x: Tensor, rotation: Tensor) -> Tensor:
    """x [..., d], rotated by `rotation` [2, ..., d], which broadcasts to it. Contiguous, of x's dtype."""
    if torch.compiler.is_compiling():  # the compiler fuses this, and cannot write into halves
        (first, second), (cos, sin) = x.chunk(2, -1), rotation
        return torch.addcmul(torch.cat([second, first], -1) * sin, x, cos).to(x.dtype)
    if torch.is_grad_enabled() and x.requires_grad:
        return _Rotate.apply(x, rotation)  # type: ignore[no-any-return]
    return RotateInto(x, rotation, torch.empty(x.shape, dtype=x.dtype, device=x.device))()


class _Rotate(torch.autograd.Function):
    """The gradient is the opposite rotation and needs no `x`: autograd's own would keep four halves of it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, rotation: Tensor) -> Tensor:
        ctx.save_for_backward(rotation)
        return rotate(x, rotation)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (rotation,) = ctx.saved_tensors
        cos, sin = rotation
        return rotate(grads[0], torch.stack([cos, -sin])), None
