"""One training step over all workers: forward, backward, clip, and update. Uses torch.distributed, but not Ray."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn

from training.data.micro_batch import MicroBatch
from training.optimise.objective import LossNormalizer, Objective
from training.optimise.optimizers import Optimizers
from training.run.recipe import Recipe


@dataclass(frozen=True, slots=True, kw_only=True)
class StepResult:
    """Losses and counts of a step, over all workers."""

    loss: float
    token_accuracy: float  # share of the predicted tokens that are right, by loss weight
    grounding: float
    topic: float
    grad_norm: float  # before clipping
    lr: float
    num_tokens: int
    num_frames: int
    num_samples: int
    num_bad: int
    duration_s: float


class StepRunner:
    """Runs training steps. All workers call it at the same time, each with its own micro-batches."""

    def __init__(
        self, objective: Objective, optimizers: Optimizers, recipe: Recipe, device: torch.device
    ) -> None:
        self.objective, self.optimizers, self.recipe, self.device = objective, optimizers, recipe, device

    def step(self, batches: Sequence[MicroBatch], done: float) -> StepResult:
        """One step. `done` is the share of the run before it. Weights stay unless some token is part of the loss."""
        started_s = time.monotonic()
        recipe, num_workers = self.recipe, dist.get_world_size()
        lr = self.optimizers.set_rates(done, recipe)
        weight, clips, tokens, frames, samples, bad = self._sum_over_workers(
            [
                sum(b.loss_weight for b in batches),
                sum(b.num_clips for b in batches),
                sum(b.num_tokens for b in batches if b.sample_ids),
                sum(b.num_frames for b in batches if b.sample_ids),
                sum(len(b.sample_ids) for b in batches),
                sum(len(b.bad_rows) for b in batches),
            ]
        )
        normalizer = LossNormalizer(max(weight, 1e-9), max(clips, 1.0))
        sums = torch.zeros(4, device=self.device)
        for batch in batches:
            with torch.autocast("cpu", torch.bfloat16, enabled=recipe.autocast):
                loss, values = self.objective(batch, normalizer, self.device)
            # The loss is a sum over workers, and FSDP averages gradients over them.
            (loss * num_workers).backward()
            sums += values
        grad_norm = nn.utils.clip_grad_norm_(self.objective.parameters(), recipe.clip_norm)
        grad_norm = grad_norm.full_tensor() if hasattr(grad_norm, "full_tensor") else grad_norm  # type: ignore[operator]
        if weight:
            self.optimizers.step()
        self.optimizers.zero_grad()
        values = self._sum_over_workers(sums.tolist())
        return StepResult(
            loss=values[0], token_accuracy=values[1], grounding=values[2], topic=values[3],
            grad_norm=float(grad_norm), lr=lr, num_tokens=int(tokens), num_frames=int(frames),
            num_samples=int(samples), num_bad=int(bad), duration_s=time.monotonic() - started_s,
        )  # fmt: skip

    def _sum_over_workers(self, values: Sequence[float]) -> list[float]:
        tensor: Tensor = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(tensor)
        return tensor.tolist()
