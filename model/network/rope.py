"""Parallel 3D-RoPE (paper, section 2.1): rotations by (time, height, width).

Letters: P visual tokens a frame, d head size. Pairs are (i, i + d/2), as in Hugging Face's Qwen2, and the first pairs
turn with time, the next with height, the last with width: for d = 128, 16, 24 and 24 of 64 pairs.
A text token at p turns by (p, p, p), a visual token by (f, f + y, f + x) = (f, f, f) + (0, y, x). So a text index and a
frame's f are the same kind of turn, and what is left of a visual token, (0, y, x), never changes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

NEAR = 4096  # indices in the table of turns

Turn = tuple[Tensor, Tensor]  # cos and sin, float32 [..., d/2]


def is_near(index: npt.ArrayLike) -> bool:
    """Whether the turns of all these indices lie in the table."""
    return bool(np.min(index) >= 0 and np.max(index) < NEAR)


def sections(head_dim: int) -> tuple[int, int, int]:
    """Pairs that turn with time, height and width."""
    pairs = head_dim // 2
    time = pairs // 4
    height = (pairs - time) // 2
    return time, height, pairs - time - height


class Rope:
    """Turns for indices. Not a module: it has no weights, and its small tables are made where they are used."""

    def __init__(self, *, head_dim: int, theta: float, grid: int) -> None:
        """`grid`: visual tokens along one side of a frame."""
        self.head_dim, self.theta, self.grid = head_dim, theta, grid
        self._frequencies: dict[torch.device, Tensor] = {}
        self._places: dict[torch.device, Turn] = {}
        self._tables: dict[torch.device, Tensor] = {}

    def turn(self, index: Tensor) -> Turn:
        """The turn of temporal indices [...], equal in all three sections: cos and sin [..., d/2].

        Angles are float64: an index may be large after days, and float32 would lose the fast pairs.
        """
        return _turn(index.unsqueeze(-1) * self._frequency(index.device))

    def turns(self, index: Tensor, out: Tensor, *, near: bool) -> None:
        """The same for whole heads, as `TurnInPlace` takes them: cos, and sin as (-sin, sin), into `out` [2, ..., d].

        `near`: all indices [...] are from 0 to below NEAR, as most are; their turns lie in a table.
        """
        if near:
            for part, table in zip(out, self._near(index.device), strict=True):
                torch.index_select(table, 0, index, out=part)
            return
        half = self._frequency(index.device)
        angle = index.unsqueeze(-1) * torch.cat([-half, half])
        torch.cos(angle, out=out[0])
        torch.sin(angle, out=out[1])

    def _near(self, device: torch.device) -> Tensor:
        if device not in self._tables:
            table = torch.empty(2, NEAR, self.head_dim, device=device, dtype=torch.float32)
            self.turns(torch.arange(NEAR, device=device), table, near=False)
            self._tables[device] = table
        return self._tables[device]

    def place(self, device: torch.device) -> Turn:
        """The turn (0, y, x) of a frame's visual tokens: cos and sin [P, d/2]."""
        if device not in self._places:
            self._places[device] = self._place(device)
        return self._places[device]

    @torch.inference_mode(False)  # kept, and used in training as well
    def _place(self, device: torch.device) -> Turn:
        time, height, width = sections(self.head_dim)
        number = torch.arange(self.grid**2, device=device)
        zero, y, x = number * 0, number // self.grid, number % self.grid
        steps = torch.stack([zero] * time + [y] * height + [x] * width, -1)
        return _turn(steps * self._frequency(device))

    @torch.inference_mode(False)
    def _frequency(self, device: torch.device) -> Tensor:
        if device not in self._frequencies:
            pairs = torch.arange(0, self.head_dim, 2, dtype=torch.float64, device=device)
            self._frequencies[device] = self.theta ** (-pairs / self.head_dim)
        return self._frequencies[device]


def _turn(angle: Tensor) -> Turn:
    return angle.cos().float(), angle.sin().float()


def rotate(x: Tensor, turn: Turn) -> Tensor:
    """`x` [..., d] turned pair by pair; `turn` [..., d/2] broadcasts to it. Contiguous, of x's dtype."""
    cos, sin = turn
    if torch.is_grad_enabled() and x.requires_grad:
        return _Rotation.apply(x, cos, sin)  # type: ignore[no-any-return]
    return _rotated(x, cos, sin)


def _rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    dtype = torch.promote_types(x.dtype, cos.dtype)  # bf16 is rounded once, at the end
    first, second = x.to(dtype).chunk(2, -1)
    out = torch.empty(x.shape, dtype=dtype, device=x.device)
    left, right = out.chunk(2, -1)
    torch.mul(first, cos, out=left).addcmul_(second, sin, value=-1)
    torch.mul(second, cos, out=right).addcmul_(first, sin)
    return out.to(x.dtype)


class _Rotation(torch.autograd.Function):
    """Autograd's own way through `_rotated` keeps four halves of x; a rotation's gradient needs none of them."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _rotated(x, cos, sin)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        return _rotated(grads[0], cos, -sin), None, None


class TurnInPlace:
    """Turns x [..., d] where it lies, again and again; `cos` and `sin` [..., d] broadcast to it (`Rope.turns`)."""

    def __init__(self, x: Tensor, cos: Tensor, sin: Tensor) -> None:
        partner = torch.empty_like(x, dtype=torch.float32)  # bf16 is rounded once, at the end
        self._whole, self._partner, self._cos = x, partner, cos
        (self._first, self._second), (self._left, self._right) = x.chunk(2, -1), partner.chunk(2, -1)
        self._minus_sin, self._sin = sin.chunk(2, -1)

    def __call__(self) -> None:
        """Once, with the numbers that x, cos and sin hold now."""
        torch.mul(self._second, self._minus_sin, out=self._left)
        torch.mul(self._first, self._sin, out=self._right)
        torch.addcmul(self._partner, self._whole, self._cos, out=self._whole)
