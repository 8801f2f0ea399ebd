"""The parts of a training loop that any trainer shares: parameter groups, the schedule, and a log that is kept."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import nn


def adamw(
    parameters: Iterable[tuple[str, nn.Parameter]], peak_lr: float, weight_decay: float
) -> torch.optim.AdamW:
    """AdamW; matrices decay, vectors (norms, gates, biases) do not."""
    trained = [(n, p) for n, p in parameters if p.requires_grad]
    groups = [
        {"params": [p for _, p in trained if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for _, p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=peak_lr, betas=(0.9, 0.98), eps=1e-8)


def muon(
    parameters: Iterable[tuple[str, nn.Parameter]], peak_lr: float, weight_decay: float
) -> torch.optim.Muon:
    """Muon: its steps turn a matrix in all directions alike, which learns rare words about twice as fast as AdamW."""
    return torch.optim.Muon(
        [p for _, p in parameters],
        lr=peak_lr,
        weight_decay=weight_decay,
        momentum=0.95,
        nesterov=True,
        adjust_lr_fn="match_rms_adamw",
    )


def learning_rate(done: float, peak_lr: float, warmup: float = 0.02, final: float = 0.02) -> float:
    """Linear warm-up, then a cosine down to `final` of the peak. `done`: the share of the run that is done, 0 to 1."""
    if done < warmup:
        return peak_lr * (done + 1e-3) / (warmup + 1e-3)
    way = min((done - warmup) / (1 - warmup), 1.0)
    return peak_lr * (final + (1 - final) * 0.5 * (1 + math.cos(math.pi * way)))


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Give all groups that rate."""
    for group in optimizer.param_groups:
        group["lr"] = lr


class RunLog:
    """One JSON line per report in a run folder, and a line of progress in the terminal."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / "log.jsonl"
        self.started_s = time.monotonic()

    @property
    def elapsed_s(self) -> float:
        """Seconds since the run started."""
        return time.monotonic() - self.started_s

    def report(self, step: int, **values: float) -> None:
        """Keep and show the values of a step."""
        row = {
            "step": step,
            "elapsed_s": round(self.elapsed_s, 1),
            **{k: round(v, 6) for k, v in values.items()},
        }
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")
        shown = "  ".join(f"{k} {v:.4g}" for k, v in row.items())
        sys.stderr.write(shown + "\n")  # Ray Train would tell twice what is printed
        sys.stderr.flush()
