"""What a run leaves behind while it goes: lines in the terminal and in `log.jsonl`, TensorBoard, Prometheus, curves."""

from __future__ import annotations

import json
import resource
import time
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
    """The most that this worker has held: on its GPU, or of the machine's memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def log_micro_batches(path: Path, step: int, parts: list[MicroBatch]) -> None:
    """Record which samples a step has seen, and which rows were bad: one line a part."""
    rows = [
        {"step": step, "part": part.index, "samples": part.samples, "bad": part.bad}
        for part in parts
        if part.index >= 0
    ]
    # In one write: a kill leaves no half lines.
    with path.open("ab", buffering=0) as file:
        file.write("".join(json.dumps(row) + "\n" for row in rows).encode())


class RunReporter:
    """Rank 0's. Values between two reports are summed or averaged."""

    def __init__(
        self, plan: Plan, work: TrainingFlops, peak: float, workers: int, device: torch.device
    ) -> None:
        """`peak`: operations a second of one worker's device."""
        self.plan, self.work, self.peak, self.workers, self.device = plan, work, peak, workers, device
        self.log = RunLog(plan.run_folder)
        self.board = SummaryWriter(str(plan.run_folder / "tensorboard"))
        self.metrics = TrainMetrics(plan.recipe.name)
        self.told: list[tuple[StepResult, float]] = []
        self.began_s = time.monotonic()

    def add(self, step: int, told: StepResult, wait_s: float) -> None:
        """A step (from 1) was made after waiting so long for its parts; every `report_every` steps it is reported."""
        self.told.append((told, wait_s))
        total = self.plan.total_steps
        self.metrics.step(
            loss=told.loss,
            learning_rate=told.lr,
            gradient_norm=told.norm,
            step_s=told.seconds + wait_s,
            num_tokens=told.tokens,
            num_frames=told.frames,
            data_wait_s=wait_s,
            done=step / total,
            memory_bytes=memory_bytes(self.device),
            right=told.right,
        )
        self.metrics.skipped(told.bad)
        if step % self.plan.recipe.report_every == 0 or step == total:
            self._report(step, total)

    def saved(self) -> None:
        """A checkpoint was written."""
        self.metrics.saved()

    def close(self) -> None:
        """Draw the curves."""
        self.board.close()
        draw(read_log(self.plan.run_folder), self.plan.run_folder / "curve.png")

    def _report(self, step: int, total: int) -> None:
        took_s = time.monotonic() - self.began_s
        num = len(self.told)
        tokens, frames = sum(t.tokens for t, _ in self.told), sum(t.frames for t, _ in self.told)
        per_frame = self.work.per_encoded_frame if self._encoded else self.work.frame
        operations = tokens * self.work.token + frames * per_frame
        values = {
            "loss": sum(t.loss for t, _ in self.told) / num,
            "right": sum(t.right for t, _ in self.told) / num,
            "grounding": sum(t.grounding for t, _ in self.told) / num,
            "topic": sum(t.topic for t, _ in self.told) / num,
            "lr": self.told[-1][0].lr,
            "norm": self.told[-1][0].norm,
            "tokens_s": tokens / took_s,
            "frames_s": frames / took_s,
            "mfu": operations / took_s / (self.peak * self.workers),
            "data_wait": sum(w for _, w in self.told) / took_s,
            "memory_gb": memory_bytes(self.device) / 1e9,
            "bad": sum(t.bad for t, _ in self.told),
            "left_s": took_s / num * (total - step),
        }
        for name in ("grounding", "topic"):
            if not getattr(self.plan.recipe, name):
                del values[name]
        self.log.report(step, **values)
        for name, value in values.items():
            self.board.add_scalar(name, value, step)
        self.told, self.began_s = [], time.monotonic()

    @property
    def _encoded(self) -> bool:
        return self.plan.seen is not None and self.plan.seen.name.startswith("features")
