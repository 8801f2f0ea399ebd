"""The Muon optimizer: torch's own, and a version for weights that FSDP2 has sharded."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim._muon import (  # functions of torch's own Muon, for a full matrix
    _adjust_lr,  # pyright: ignore[reportPrivateUsage]
    _zeropower_via_newtonschulz,  # pyright: ignore[reportPrivateUsage]
)


def muon(
    parameters: Iterable[tuple[str, nn.Parameter]], peak_lr: float, weight_decay: float
) -> torch.optim.Muon:
    """Muon orthogonalises updates. streamchat-tiny learns rare words about twice as fast with it as with AdamW."""
    return torch.optim.Muon(
        [p for _, p in parameters],
        lr=peak_lr,
        weight_decay=weight_decay,
        momentum=0.95,
        nesterov=True,
        adjust_lr_fn="match_rms_adamw",
    )


class ShardedMuon(torch.optim.Muon):
    """Muon for sharded weights. Each worker gathers the full update, orthogonalises it, and keeps its own shard."""

    def __init__(
        self, parameters: list[tuple[str, nn.Parameter]], peak_lr: float, weight_decay: float
    ) -> None:
        defaults = muon(parameters, peak_lr, weight_decay).defaults
        super().__init__([p for _, p in parameters], **defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """The same as torch's single-tensor step, but on gathered matrices."""
        assert closure is None
        for group in self.param_groups:
            lr = float(group["lr"])
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                update = self._update(parameter, group)
                parameter.mul_(1 - lr * group["weight_decay"])
                parameter.add_(update, alpha=-_adjust_lr(lr, group["adjust_lr_fn"], parameter.shape))

    def _update(self, parameter: DTensor, group: dict[str, Any]) -> Tensor:
        grad, state = parameter.grad, self.state[parameter]
        assert grad is not None
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(grad)
        momentum = state["momentum_buffer"]
        momentum.lerp_(grad, 1 - group["momentum"])
        update = grad.lerp(momentum, group["momentum"]) if group["nesterov"] else momentum
        assert isinstance(update, DTensor)
        full_update = _zeropower_via_newtonschulz(
            update.full_tensor(), group["ns_coefficients"], group["ns_steps"], group["eps"]
        ).to(parameter.dtype)
        # All workers have computed the same update, so no worker sends it.
        return distribute_tensor(full_update, parameter.device_mesh, parameter.placements, src_data_rank=None)
