"""The training loop. Every worker runs it, from the initial model or from the last checkpoint to the last step."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
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
class TrainState:
    """How far a run is. Checkpoints keep it."""

    step: int = 0
    num_samples: int = 0
    num_bad: int = 0


class Trainer:
    """One worker: its shard of the model and the optimizers, and the loop over the steps."""

    def __init__(self, plan: Plan) -> None:
        self.plan, self.recipe = plan, plan.recipe
        self.rank, self.world_size = dist.get_rank(), dist.get_world_size()
        self.device = get_device()
        torch.manual_seed(self.recipe.seed)
        with torch.device("meta"):
            self.model = StreamChat(StreamChatConfig.load(plan.initial_model))
        set_trainable(self.model, self.recipe.trainable)
        flops = TrainingFlops.of(self.model)
        self.model.flex = self.recipe.flex and self.device.type == "cuda"
        objective = Objective(self.model, self._tokenizer(), self.recipe.grounding, self.recipe.topic)
        shard(objective, init_device_mesh(self.device.type, (self.world_size,)), self.recipe)
        load_weights(self.model, plan.initial_model, self.device)
        objective.train()
        self.optimizers = Optimizers.of(self.model, self.recipe)
        self.step_runner = StepRunner(objective, self.optimizers, self.recipe, self.device)
        self.state = TrainState()
        self._load_checkpoint()
        self.reporter = None
        if self.rank == 0:
            self.reporter = RunReporter(plan, flops, peak_flops(self.device), self.world_size, self.device)

    def run(self) -> None:
        """Train to the end of the run and write the model. Stops early if too many rows are bad."""
        stream = cast(MicroBatchStream, ray.train.get_dataset_shard("micro_batches"))
        steps = _with_wait_times(stream.steps(self.state.step))
        while self.state.step < self.plan.total_steps:
            batches, wait_s = next(steps)
            self._step(batches, wait_s)
            if self._has_too_many_bad_rows():
                return
            if self.state.step % self.recipe.save_every == 0 or self.state.step == self.plan.total_steps:
                self._save_checkpoint()
        save_model_folder(self.model, self.plan.initial_model, self.plan.out, writes=self.rank == 0)
        if self.reporter is not None:
            self.reporter.close()

    def _step(self, batches: list[MicroBatch], wait_s: float) -> None:
        log_micro_batches(self.plan.run_folder / f"micro_batches-{self.rank}.jsonl", self.state.step, batches)
        result = self.step_runner.step(batches, self.state.step / self.plan.total_steps)
        self.state.step += 1
        self.state.num_samples += result.num_samples
        self.state.num_bad += result.num_bad
        if self.reporter is not None:
            self.reporter.add(self.state.step, result, wait_s)

    def _has_too_many_bad_rows(self) -> bool:
        """The counts are the same on every worker, so all stop together.

        This is no exception: Ray would start the workers again, and the rows would be bad again.
        """
        num_rows = self.state.num_samples + self.state.num_bad
        if num_rows < BadRowCounter.MIN_ROWS and self.state.step < self.plan.total_steps:
            return False
        if self.state.num_bad <= self.recipe.max_bad_share * num_rows:
            return False
        if self.rank == 0:
            counts = {"bad": self.state.num_bad, "rows": num_rows}
            (self.plan.run_folder / STOPPED).write_text(json.dumps(counts) + "\n")
        return True

    def _save_checkpoint(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            save_checkpoint(Path(folder), self.model, self.optimizers.all)
            if self.rank == 0:
                (Path(folder) / STATE).write_text(json.dumps(asdict(self.state)) + "\n")
            ray.train.report(
                {"step": self.state.step},
                checkpoint=Checkpoint.from_directory(folder),
                checkpoint_dir_name=f"step-{self.state.step:08d}",
            )
        if self.reporter is not None:
            self.reporter.saved()

    def _load_checkpoint(self) -> None:
        checkpoint = ray.train.get_checkpoint()
        if checkpoint is None:
            return
        with checkpoint.as_directory() as folder:
            load_checkpoint(Path(folder), self.model, self.optimizers.all)
            self.state = TrainState(**json.loads((Path(folder) / STATE).read_text()))
        if self.rank == 0:
            print(f"continuing from step {self.state.step} with {self.world_size} workers", flush=True)

    def _tokenizer(self) -> PreTrainedTokenizerFast:
        tokenizer = load_tokenizer(self.plan.initial_model)
        assert isinstance(tokenizer, PreTrainedTokenizerFast)
        return tokenizer


def train_loop_per_worker(config: dict[str, Any]) -> None:
    """Ray Train calls this in every worker."""
    plan: Plan = config["plan"]
    torch.set_num_threads(plan.num_threads)
    Trainer(plan).run()


def _with_wait_times(steps: Iterator[list[MicroBatch]]) -> Iterator[tuple[list[MicroBatch], float]]:
    """The micro-batches of each step, with the seconds that the worker waited for them."""
    while True:
        started_s = time.monotonic()
        try:
            batches = next(steps)
        except StopIteration:
            return
        yield batches, time.monotonic() - started_s
