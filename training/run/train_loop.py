"""The one training loop: what every worker of a run does, from the start folder (or its last checkpoint) to the end."""

from __future__ import annotations

import itertools
import json
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import ray.train
import torch
import torch.distributed as dist
from ray.train import Checkpoint
from ray.train.torch import get_device
from torch.distributed.device_mesh import init_device_mesh
from transformers import PreTrainedTokenizerFast

from model.checkpoint.tokenizer import load_tokenizer
from model.config import StreamChatConfig
from model.network.streamchat import StreamChat
from training.data.bad_row import BadRowCounter
from training.data.micro_batch import MicroBatch
from training.monitoring.flops import TrainingFlops, peak_flops
from training.monitoring.run_reporter import RunReporter, log_micro_batches
from training.optimise.objective import Objective
from training.optimise.optimizers import Optimizers
from training.optimise.trainable import set_trainable
from training.run.micro_batch_stream import MicroBatchStream
from training.run.plan import Plan
from training.run.sharding import load_checkpoint, load_weights, save_checkpoint, save_model_folder, shard
from training.run.train_step import StepRunner

STATE = "state.json"
STOPPED = "stopped.json"


@dataclass(slots=True)
class Position:
    """How far a run is; kept in its checkpoints."""

    step: int = 0
    samples: int = 0
    bad: int = 0


class Worker:
    """One of the processes that train together."""

    def __init__(self, plan: Plan) -> None:
        self.plan, self.recipe = plan, plan.recipe
        self.rank, self.world_size = dist.get_rank(), dist.get_world_size()
        self.device = get_device()
        torch.manual_seed(self.recipe.seed)
        with torch.device("meta"):
            self.model = StreamChat(StreamChatConfig.load(plan.start))
        set_trainable(self.model, self.recipe.trainable)
        work = TrainingFlops.of(self.model)
        self.model.flex = self.recipe.flex and self.device.type == "cuda"
        objective = Objective(self.model, self._tokenizer(), self.recipe.grounding, self.recipe.topic)
        shard(objective, init_device_mesh(self.device.type, (self.world_size,)), self.recipe)
        load_weights(self.model, plan.start, self.device)
        objective.train()
        self.optimizers = Optimizers.of(self.model, self.recipe)
        self.stepper = StepRunner(objective, self.optimizers, self.recipe, self.device)
        self.at = Position()
        self._resume()
        self.record = None
        if self.rank == 0:
            peak = peak_flops(self.device)
            self.record = RunReporter(plan, work, peak, self.world_size, self.device)

    def run(self) -> None:
        """Train to the end of the run, or until too many rows are bad; then write the folder."""
        stream = cast(MicroBatchStream, ray.train.get_dataset_shard("parts"))
        steps = _timed(stream.steps(self.at.step))
        for _ in range(self.at.step, self.plan.total_steps):
            parts, wait_s = next(steps)
            self._step(parts, wait_s)
            if self._too_many_bad():
                return
            if self.at.step % self.recipe.save_every == 0 or self.at.step == self.plan.total_steps:
                self._save()
        save_model_folder(self.model, self.plan.start, self.plan.out, writes=self.rank == 0)
        if self.record is not None:
            self.record.close()

    def _step(self, parts: list[MicroBatch], wait_s: float) -> None:
        log_micro_batches(self.plan.run_folder / f"micro_batches-{self.rank}.jsonl", self.at.step, parts)
        told = self.stepper.step(parts, self.at.step / self.plan.total_steps)
        self.at.step += 1
        self.at.samples += told.samples
        self.at.bad += told.bad
        if self.record is not None:
            self.record.add(self.at.step, told, wait_s)

    def _too_many_bad(self) -> bool:
        """Every worker knows the same sums, so all stop together. Not an error: trying again would not help."""
        num = self.at.samples + self.at.bad
        if num < BadRowCounter.MIN_ROWS and self.at.step < self.plan.total_steps:
            return False
        if self.at.bad <= self.recipe.max_bad_share * num:
            return False
        if self.rank == 0:
            (self.plan.run_folder / STOPPED).write_text(json.dumps({"bad": self.at.bad, "rows": num}) + "\n")
        return True

    def _save(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            save_checkpoint(Path(folder), self.model, self.optimizers.all)
            if self.rank == 0:
                at = {name: getattr(self.at, name) for name in Position.__slots__}
                (Path(folder) / STATE).write_text(json.dumps(at) + "\n")
            ray.train.report(
                {"step": self.at.step},
                checkpoint=Checkpoint.from_directory(folder),
                checkpoint_dir_name=f"step-{self.at.step:08d}",
            )
        if self.record is not None:
            self.record.saved()

    def _resume(self) -> None:
        checkpoint = ray.train.get_checkpoint()
        if checkpoint is None:
            return
        with checkpoint.as_directory() as folder:
            load_checkpoint(Path(folder), self.model, self.optimizers.all)
            values: dict[str, Any] = json.loads((Path(folder) / STATE).read_text())
        self.at = Position(**values)
        if self.rank == 0:
            print(f"going on from step {self.at.step} with {self.world_size} workers", flush=True)

    def _tokenizer(self) -> PreTrainedTokenizerFast:
        tokenizer = load_tokenizer(self.plan.start)
        assert isinstance(tokenizer, PreTrainedTokenizerFast)
        return tokenizer


def train(config: dict[str, Any]) -> None:
    """What Ray Train runs in every worker."""
    plan: Plan = config["plan"]
    torch.set_num_threads(plan.threads)
    Worker(plan).run()


def _timed(steps: Iterator[list[MicroBatch]]) -> Iterator[tuple[list[MicroBatch], float]]:
    """Each step's parts, with the seconds that were waited for them."""
    for _ in itertools.count():
        began_s = time.monotonic()
        try:
            parts = next(steps)
        except StopIteration:
            return
        yield parts, time.monotonic() - began_s
