"""RMSNorm (x / sqrt(mean(x ** 2) + eps) * weight): as a module, and in place.

Letters: N packed tokens, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import rms_norm


class RMSNorm(nn.Module):
    """The module, for training."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] -> [..., D]."""
        return rms_norm(x, self.weight.shape, self.weight, self.eps)


class InPlaceRMSNorm:
    """The same in four operations that write to given memory: the root of the sum stands for that of the mean."""

    def __init__(self, norm: RMSNorm) -> None:
        root = norm.weight.shape[0] ** 0.5
        self._weight = norm.weight.detach().float() * root
        self._min_length = torch.tensor(root * norm.eps**0.5, device=norm.weight.device)

    def __call__(self, x: Tensor, out: Tensor | None = None, length: Tensor | None = None) -> Tensor:
        """x [N, D] -> out [N, D]; `length` float32 [N, 1] is overwritten. What is not given is allocated."""
        root = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32, out=length)
        out = torch.empty_like(x) if out is None else out
        return torch.div(x, root.hypot_(self._min_length), out=out).mul_(self._weight)
