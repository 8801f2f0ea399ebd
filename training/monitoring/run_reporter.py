"""Reports the progress of a run: terminal, `log.jsonl`, TensorBoard, Prometheus, and the curves at the end."""

from __future__ import annotations

import json
import math
import resource
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from tensorboardX import SummaryWriter

from training.data.micro_batch import MicroBatch
from training.monitoring.curves import draw, read_log
from training.monitoring.flops import TrainingFlops
from training.monitoring.metrics import TrainMetrics
from training.monitoring.run_log import RunLog
from training.run.plan import Plan
from training.run.train_step import StepResult


def memory_bytes(device: torch.device) -> int:
    """Peak memory of this worker: on its GPU, or of its process if it has no GPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def log_micro_batches(path: Path, step: int, batches: list[MicroBatch], num_workers: int) -> None:
    """Append one line for each micro-batch of a step: its samples and its bad rows."""
    rows = [
        {
            "step": step,
            "workers": num_workers,
            "micro_batch": batch.index,
            "samples": batch.sample_ids,
            "bad": batch.bad_rows,
        }
        for batch in batches
        if batch.index >= 0
    ]
    # A single unbuffered write, so that a kill does not leave half a line.
    with path.open("ab", buffering=0) as file:
        file.write("".join(json.dumps(row) + "\n" for row in rows).encode())


class RunReporter:
    """Reports for rank 0. A report has the sums or the means of the steps since the last report."""

    def __init__(
        self, plan: Plan, flops: TrainingFlops, peak: float, num_workers: int, device: torch.device
    ) -> None:
        """`peak`: operations per second of one worker's device."""
        self.plan, self.flops, self.peak, self.device = plan, flops, peak, device
        self.num_workers = num_workers
        self.log = RunLog(plan.run_folder)
        self.tensorboard = SummaryWriter(str(plan.run_folder / "tensorboard"))
        self.metrics = TrainMetrics(plan.recipe.name)
        self.results: list[tuple[StepResult, float]] = []  # each with the seconds of waiting before it
        self.validation: dict[str, float] = {}
        self.started_s = time.monotonic()

    def add(self, step: int, result: StepResult, wait_s: float) -> None:
        """Add a step (counted from 1) and the seconds that it waited for data. Reports every `report_every` steps."""
        self.results.append((result, wait_s))
        total = self.plan.total_steps
        self.metrics.step(
            loss=result.loss,
            learning_rate=result.lr,
            gradient_norm=result.grad_norm,
            step_s=result.duration_s + wait_s,
            num_tokens=result.num_tokens,
            num_frames=result.num_frames,
            data_wait_s=wait_s,
            done=step / total,
            memory_bytes=memory_bytes(self.device),
            right=result.token_accuracy,
        )
        self.metrics.skipped_rows(result.num_bad)
        self.metrics.skipped_steps(int(result.skipped))
        if step % self.plan.recipe.report_every == 0 or step == total:
            self._report(step, total)

    def validated(self, loss: float, accuracy: float) -> None:
        """Report the validation rows' loss and token accuracy with the next report."""
        self.validation = {"validation": loss, "validation_right": accuracy}
        self.metrics.validated(loss, accuracy)

    def saved(self) -> None:
        """Count a written checkpoint."""
        self.metrics.saved()

    def close(self) -> None:
        """Close TensorBoard's file and draw the curves."""
        self.tensorboard.close()
        draw(read_log(self.plan.run_folder), self.plan.run_folder / "curve.png")

    def _report(self, step: int, total: int) -> None:
        elapsed_s = time.monotonic() - self.started_s
        results, num = [result for result, _ in self.results], len(self.results)
        finite = [result for result in results if not result.skipped]
        tokens, frames = sum(r.num_tokens for r in results), sum(r.num_frames for r in results)
        per_frame = self.flops.per_encoded_frame if self._has_encoded_frames else self.flops.per_frame
        operations = tokens * self.flops.per_token + frames * per_frame
        values = {
            "loss": _mean([r.loss for r in finite]),
            "right": _mean([r.token_accuracy for r in finite]),
            "grounding": _mean([r.grounding for r in finite]),
            "topic": _mean([r.topic for r in finite]),
            "lr": results[-1].lr,
            "norm": (finite or results)[-1].grad_norm,
            "tokens_s": tokens / elapsed_s,
            "frames_s": frames / elapsed_s,
            "mfu": operations / elapsed_s / (self.peak * self.num_workers),
            "data_wait": sum(wait_s for _, wait_s in self.results) / elapsed_s,
            "memory_gb": memory_bytes(self.device) / 1e9,
            "bad": sum(r.num_bad for r in results),
            "skipped": num - len(finite),
            "left_s": elapsed_s / num * (total - step),
        }
        for name in ("grounding", "topic"):
            if not getattr(self.plan.recipe, name):
                del values[name]
        values |= self.validation
        self.validation = {}
        self.log.report(step, **values)
        for name, value in values.items():
            self.tensorboard.add_scalar(name, value, step)
        self.results, self.started_s = [], time.monotonic()

    @property
    def _has_encoded_frames(self) -> bool:
        return self.plan.clip_frames is not None and self.plan.clip_frames.name.startswith("features")


def _mean(values: Sequence[float]) -> float:
    """The mean; NaN of no values, when all steps since the last report were skipped."""
    return sum(values) / len(values) if values else math.nan
