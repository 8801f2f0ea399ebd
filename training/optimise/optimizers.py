"""The optimizers of a run: AdamW for all, or Muon for the matrices within the layers and AdamW for the rest."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim._muon import (  # the steps that torch's own Muon makes of a whole matrix
    _adjust_lr,  # pyright: ignore[reportPrivateUsage]
    _zeropower_via_newtonschulz,  # pyright: ignore[reportPrivateUsage]
)

from training.optimise.optimisation import adamw, learning_rate, muon, set_learning_rate
from training.run.recipe import Recipe


@dataclass(frozen=True, slots=True)
class Optimizers:
    """Optimizers, each with the peak of its learning rate."""

    with_peaks: tuple[tuple[torch.optim.Optimizer, float], ...]

    @staticmethod
    def of(model: nn.Module, recipe: Recipe) -> Optimizers:
        """What the recipe wants for the parameters that learn."""
        learn = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
        matrices = [(n, p) for n, p in learn if recipe.peak_muon_lr and p.ndim == 2 and "embed" not in n]
        names = {name for name, _ in matrices}
        others = [(n, p) for n, p in learn if n not in names]
        made: list[tuple[torch.optim.Optimizer, float]] = []
        if others:
            made.append((adamw(others, recipe.peak_lr, recipe.weight_decay), recipe.peak_lr))
        if matrices:
            kind = ShardedMuon if isinstance(matrices[0][1], DTensor) else muon
            made.append((kind(matrices, recipe.peak_muon_lr, recipe.weight_decay), recipe.peak_muon_lr))
        return Optimizers(tuple(made))

    @property
    def all(self) -> list[torch.optim.Optimizer]:
        """Without their rates."""
        return [optimizer for optimizer, _ in self.with_peaks]

    def set_rates(self, done: float, recipe: Recipe) -> float:
        """Warm-up and cosine at the share `done` of the run; returns the first one's rate."""
        rates = [learning_rate(done, peak, recipe.warmup, recipe.final_lr) for _, peak in self.with_peaks]
        for optimizer, rate in zip(self.all, rates, strict=True):
            set_learning_rate(optimizer, rate)
        return rates[0]

    def step(self) -> None:
        """One step of each."""
        for optimizer in self.all:
            optimizer.step()

    def zero_grad(self) -> None:
        """Forget all gradients."""
        for optimizer in self.all:
            optimizer.zero_grad(set_to_none=True)


class ShardedMuon(torch.optim.Muon):
    """Muon for weights of which each worker holds a share: what it turns is gathered, and each keeps its part."""

    def __init__(
        self, parameters: list[tuple[str, nn.Parameter]], peak_lr: float, weight_decay: float
    ) -> None:
        plain = muon(parameters, peak_lr, weight_decay).defaults
        super().__init__([p for _, p in parameters], **plain)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """Torch's single-tensor step, on gathered matrices."""
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
        wanted = grad.lerp(momentum, group["momentum"]) if group["nesterov"] else momentum
        assert isinstance(wanted, DTensor)
        whole = _zeropower_via_newtonschulz(
            wanted.full_tensor(), group["ns_coefficients"], group["ns_steps"], group["eps"]
        ).to(parameter.dtype)
        # All workers have made the same: nobody need send it.
        return distribute_tensor(whole, parameter.device_mesh, parameter.placements, src_data_rank=None)
