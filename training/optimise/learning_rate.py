"""The learning rate schedule: a linear warm-up, then a cosine."""

from __future__ import annotations

import math

import torch


def learning_rate(done: float, peak_lr: float, warmup: float = 0.02, final: float = 0.02) -> float:
    """Linear warm-up, then a cosine down to `final` of the peak. `done`: share of the run, 0 to 1."""
    if done < warmup:
        return peak_lr * (done + 1e-3) / (warmup + 1e-3)
    progress = min((done - warmup) / (1 - warmup), 1.0)
    return peak_lr * (final + (1 - final) * 0.5 * (1 + math.cos(math.pi * progress)))


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the learning rate of all parameter groups."""
    for group in optimizer.param_groups:
        group["lr"] = lr
