"""One step of training: parts in, a better model out. Knows torch.distributed, and nothing of Ray."""

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
    """What a step has to tell, over all workers."""

    loss: float
    right: float  # share of the words that count
    grounding: float
    topic: float
    norm: float  # of the gradient, before clipping
    lr: float
    tokens: int
    frames: int
    samples: int
    bad: int
    seconds: float


class StepRunner:
    """Makes steps; all workers call it together, each with its parts."""

    def __init__(
        self, objective: Objective, optimizers: Optimizers, recipe: Recipe, device: torch.device
    ) -> None:
        self.objective, self.optimizers, self.recipe, self.device = objective, optimizers, recipe, device

    def step(self, parts: Sequence[MicroBatch], done: float) -> StepResult:
        """One step at the share `done` of the run. Nothing is learnt from a step in which no word counts."""
        began_s = time.monotonic()
        recipe, workers = self.recipe, dist.get_world_size()
        lr = self.optimizers.set_rates(done, recipe)
        sums = self._sum(
            [
                sum(p.weight for p in parts),
                sum(p.num_clips for p in parts),
                sum(p.num_tokens for p in parts if p.samples),
                sum(p.num_frames for p in parts if p.samples),
                sum(len(p.samples) for p in parts),
                sum(len(p.bad) for p in parts),
            ]
        )
        totals = LossNormalizer(max(sums[0], 1e-9), max(sums[1], 1.0))
        told = torch.zeros(4, device=self.device)
        for part in parts:
            with torch.autocast("cpu", torch.bfloat16, enabled=recipe.autocast):
                loss, values = self.objective(part, totals, self.device)
            (loss * workers).backward()  # FSDP takes the mean over workers, and the loss is a sum over them
            told += values
        norm = nn.utils.clip_grad_norm_(self.objective.parameters(), recipe.clip_norm)
        norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm  # type: ignore[operator]
        if sums[0]:
            self.optimizers.step()
        self.optimizers.zero_grad()
        values = self._sum(told.tolist())
        return StepResult(
            loss=values[0], right=values[1], grounding=values[2],
            topic=values[3], norm=float(norm), lr=lr,
            tokens=int(sums[2]), frames=int(sums[3]), samples=int(sums[4]), bad=int(sums[5]),
            seconds=time.monotonic() - began_s,
        )  # fmt: skip

    def _sum(self, values: Sequence[float]) -> list[float]:
        """Over all workers."""
        tensor: Tensor = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(tensor)
        return tensor.tolist()
