"""One training step over all workers: forward, backward, clip, and update. Uses torch.distributed, but not Ray."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

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
    skipped: bool  # the loss or the gradient is not finite, so the weights stay
    duration_s: float


SMALL_GRADIENTS = 2**30  # bytes; whole gradients of that size may be kept during a step


class StepRunner:
    """Runs training steps. All workers call it at the same time, each with its own micro-batches."""

    def __init__(
        self, objective: Objective, optimizers: Optimizers, recipe: Recipe, device: torch.device
    ) -> None:
        self.objective, self.optimizers, self.recipe, self.device = objective, optimizers, recipe, device
        learning = [parameter for parameter in objective.parameters() if parameter.requires_grad]
        self._keeps_whole_gradients = sum(4 * p.numel() for p in learning) <= SMALL_GRADIENTS

    def step(self, batches: Sequence[MicroBatch], done: float) -> StepResult:
        """One step. `done` is the share of the run before it.

        The weights stay if no token is part of the loss, and if the loss or the gradient is not finite.
        """
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
        for number, batch in enumerate(batches, 1):
            self._exchange_gradients(number == len(batches))
            with torch.autocast("cpu", torch.bfloat16, enabled=recipe.autocast):
                loss, values = self.objective(batch, normalizer, self.device)
            # The loss is a sum over workers, and FSDP averages gradients over them.
            (loss * num_workers).backward()
            sums += values
        grad_norm = nn.utils.clip_grad_norm_(self.objective.parameters(), recipe.clip_norm)
        grad_norm = grad_norm.full_tensor() if hasattr(grad_norm, "full_tensor") else grad_norm  # type: ignore[operator]
        values = self._sum_over_workers(sums.tolist())  # the same on every worker, as is the norm
        finite = math.isfinite(values[0]) and math.isfinite(float(grad_norm))
        if weight and finite:
            self.optimizers.step()
        self.optimizers.zero_grad()
        return StepResult(
            loss=values[0], token_accuracy=values[1], grounding=values[2], topic=values[3],
            grad_norm=float(grad_norm), lr=lr, num_tokens=int(tokens), num_frames=int(frames),
            num_samples=int(samples), num_bad=int(bad), skipped=not finite,
            duration_s=time.monotonic() - started_s,
        )  # fmt: skip

    @torch.no_grad()
    def evaluate(self, batches: Sequence[MicroBatch]) -> tuple[float, float]:
        """Loss and token accuracy of micro-batches, over all workers, each of which has as many. Learns nothing."""
        (weight,) = self._sum_over_workers([sum(batch.loss_weight for batch in batches)])
        normalizer = LossNormalizer(max(weight, 1e-9), 1.0)
        sums = torch.zeros(2, device=self.device)
        self.objective.eval()
        for batch in batches:
            with torch.autocast("cpu", torch.bfloat16, enabled=self.recipe.autocast):
                sums += self.objective(batch, normalizer, self.device)[1][:2]
        self.objective.train()
        loss, accuracy = self._sum_over_workers(sums.tolist())
        return loss, accuracy

    def _exchange_gradients(self, is_last: bool) -> None:
        """Exchange gradients over the network once in a step: over nodes always, in a node if memory allows it."""
        if isinstance(self.objective, FSDPModule):
            self.objective.set_requires_all_reduce(is_last)
            if self._keeps_whole_gradients:
                self.objective.set_requires_gradient_sync(is_last)

    def _sum_over_workers(self, values: Sequence[float]) -> list[float]:
        tensor: Tensor = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(tensor)
        return tensor.tolist()
