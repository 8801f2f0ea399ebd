"""The optimizers of a run: AdamW for all weights, or Muon for the matrices in the layers and AdamW for the rest."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from training.optimise.learning_rate import learning_rate, set_learning_rate
from training.optimise.muon import ShardedMuon, muon
from training.run.recipe import Recipe


def adamw(
    parameters: Iterable[tuple[str, nn.Parameter]], peak_lr: float, weight_decay: float
) -> torch.optim.AdamW:
    """AdamW with weight decay for matrices, but not for vectors (norms, gates, biases)."""
    trained = [(n, p) for n, p in parameters if p.requires_grad]
    groups = [
        {"params": [p for _, p in trained if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for _, p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=peak_lr, betas=(0.9, 0.98), eps=1e-8)


@dataclass(frozen=True, slots=True)
class Optimizers:
    """The optimizers of a run, each with the peak of its learning rate."""

    with_peaks: tuple[tuple[torch.optim.Optimizer, float], ...]

    @staticmethod
    def of(model: nn.Module, recipe: Recipe) -> Optimizers:
        """The recipe's optimizers for the parameters that learn."""
        learn = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
        matrices = [(n, p) for n, p in learn if recipe.peak_muon_lr and p.ndim == 2 and "embed" not in n]
        names = {name for name, _ in matrices}
        others = [(n, p) for n, p in learn if n not in names]
        optimizers: list[tuple[torch.optim.Optimizer, float]] = []
        if others:
            optimizers.append((adamw(others, recipe.peak_lr, recipe.weight_decay), recipe.peak_lr))
        if matrices:
            kind = ShardedMuon if isinstance(matrices[0][1], DTensor) else muon
            optimizers.append((kind(matrices, recipe.peak_muon_lr, recipe.weight_decay), recipe.peak_muon_lr))
        return Optimizers(tuple(optimizers))

    @property
    def all(self) -> list[torch.optim.Optimizer]:
        """The optimizers without their peak rates."""
        return [optimizer for optimizer, _ in self.with_peaks]

    def set_rates(self, done: float, recipe: Recipe) -> float:
        """Set the learning rates for the share `done` of the run. Returns the rate of the first optimizer."""
        rates = [learning_rate(done, peak, recipe.warmup, recipe.final_lr) for _, peak in self.with_peaks]
        for optimizer, rate in zip(self.all, rates, strict=True):
            set_learning_rate(optimizer, rate)
        return rates[0]

    def step(self) -> None:
        """One step of each optimizer."""
        for optimizer in self.all:
            optimizer.step()

    def zero_grad(self) -> None:
        """Clear all gradients."""
        for optimizer in self.all:
            optimizer.zero_grad(set_to_none=True)
