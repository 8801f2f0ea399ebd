"""The training loop. Every worker runs it, from the initial model or from the last checkpoint to the last step."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast

import ray.train
import torch
import torch.distributed as dist
from ray.train import Checkpoint, CheckpointUploadMode
from ray.train.torch import get_device
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
from training.run.micro_batch_source import cached_source
from training.run.micro_batch_stream import MicroBatchStream
from training.run.plan import Plan
from training.run.sharding import (
    load_checkpoint,
    load_weights,
    make_mesh,
    save_checkpoint,
    save_model_folder,
    shard,
)
from training.run.train_step import StepRunner

STATE = "state.json"
CHECKPOINTS = "checkpoints"  # folder in the run's folder; its name is Ray's name of the run


@dataclass(slots=True)
class TrainState:
    """How far a run is. Checkpoints keep it."""

    step: int = 0
    num_samples: int = 0
    num_bad: int = 0
    num_skipped: int = 0  # of the last steps, in a row


class Trainer:
    """One worker: its shard of the model and the optimizers, and the loop over the steps."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan.after_out_of_memory()
        self.recipe = self.plan.recipe
        self.rank, self.world_size = dist.get_rank(), dist.get_world_size()
        self.device = get_device()
        torch.manual_seed(self.recipe.seed)
        with torch.device("meta"):
            self.model = StreamChat(StreamChatConfig.load(plan.initial_model))
        set_trainable(self.model, self.recipe.trainable)
        flops = TrainingFlops.of(self.model)
        self.model.flex = self.recipe.flex and self.device.type == "cuda"
        objective = Objective(self.model, self._tokenizer(), self.recipe.grounding, self.recipe.topic)
        local_size = ray.train.get_context().get_local_world_size()
        shard(objective, make_mesh(self.device.type, self.world_size, local_size, self.recipe), self.recipe)
        load_weights(self.model, plan.initial_model, self.device)
        objective.train()
        self.optimizers = Optimizers.of(self.model, self.recipe)
        self.step_runner = StepRunner(objective, self.optimizers, self.recipe, self.device)
        self.state = TrainState()
        self.validation: list[MicroBatch] = []
        self._written: Future[Any] | None = None  # the last checkpoint
        # Of its own, because it is used while training uses the default one.
        self._checkpoint_group = cast(dist.ProcessGroup, dist.new_group(backend="gloo"))
        self._load_checkpoint()
        self.reporter = None
        if self.rank == 0:
            self.reporter = RunReporter(plan, flops, peak_flops(self.device), self.world_size, self.device)

    def run(self) -> None:
        """Train to the end of the run and write the model. Stops early if too many rows are bad or steps skipped."""
        stream = cast(MicroBatchStream, ray.train.get_dataset_shard("micro_batches"))
        if self.plan.stopped_file.is_file():
            return  # a worker stopped the run by an error, after which Ray started all of them again
        steps = _with_wait_times(replace(stream, plan=self.plan).steps(self.state.step))
        while self.state.step < self.plan.total_steps:
            batches, wait_s = next(steps)
            try:
                self._step(batches, wait_s)
            except RuntimeError as error:
                if is_out_of_memory(error):
                    self._halve_micro_batch(error)
                raise
            if reason := self._reason_to_stop():
                if self.rank == 0:
                    self._stop(reason)
                return
            if self.state.step % self.recipe.save_every == 0 or self.state.step == self.plan.total_steps:
                self._save_checkpoint()
        save_model_folder(self.model, self.plan.initial_model, self.plan.out, writes=self.rank == 0)
        if self.reporter is not None:
            self.reporter.close()

    def _step(self, batches: list[MicroBatch], wait_s: float) -> None:
        path = self.plan.run_folder / f"micro_batches-{self.rank}.jsonl"
        log_micro_batches(path, self.state.step, batches, self.world_size)
        result = self.step_runner.step(batches, self.state.step / self.plan.total_steps)
        self.state.step += 1
        self.state.num_samples += result.num_samples
        self.state.num_bad += result.num_bad
        self._validate()
        self.state.num_skipped = self.state.num_skipped + 1 if result.skipped else 0
        if self.reporter is not None:
            self.reporter.add(self.state.step, result, wait_s)

    def _validate(self) -> None:
        """Report the loss of the validation rows, if it is time to."""
        step, total = self.state.step, self.plan.total_steps
        if self.plan.validation_table is None or (step % self.recipe.validate_every and step < total):
            return
        if not self.validation:  # kept from then on
            self.validation = cached_source(self.plan).validation(self.rank, self.world_size)
        loss, accuracy = self.step_runner.evaluate(self.validation)
        if self.reporter is not None:
            self.reporter.validated(loss, accuracy)

    def _halve_micro_batch(self, error: RuntimeError) -> None:
        """Ray Train starts all workers again from the last checkpoint, with the smaller micro-batch."""
        try:
            size = self.plan.halve_micro_batch()
        except ValueError as refusal:
            self._stop({"reason": f"{refusal}: {error}"})
        else:
            print(f"out of memory: going on with micro_batch {size}: {error}", file=sys.stderr, flush=True)

    def _stop(self, reason: dict[str, Any]) -> None:
        """Say why the run ends early: `launch.stop_reason` reads it."""
        self.plan.stopped_file.write_text(json.dumps(reason) + "\n")

    def _reason_to_stop(self) -> dict[str, Any] | None:
        """Why to end the run, the same on every worker, so all stop together.

        This is no exception: Ray would start the workers again, and it would happen again.
        """
        state = self.state
        if state.num_skipped >= self.recipe.max_skipped:
            return {
                "reason": f"the loss or the gradient was not finite in the {state.num_skipped} steps before step "
                f"{state.step}: look at their rows in {self.plan.run_folder}/micro_batches-*.jsonl, or make a folder "
                "of the last checkpoint (training/make_folder.py) and train it with a lower peak_lr"
            }
        num_rows = state.num_samples + state.num_bad
        if num_rows < BadRowCounter.MIN_ROWS and state.step < self.plan.total_steps:
            return None
        if state.num_bad <= self.recipe.max_bad_share * num_rows:
            return None
        return {"bad": state.num_bad, "rows": num_rows}

    def _save_checkpoint(self) -> None:
        """Write a checkpoint to where Ray Train keeps them, while training goes on."""
        name = f"step-{self.state.step:08d}"
        folder = self.plan.run_folder / CHECKPOINTS / name
        folder.mkdir(parents=True, exist_ok=True)
        if self._written is not None:
            self._written.result()  # one at a time
        self._written = written = save_checkpoint(
            folder, self.model, self.optimizers.all, self._checkpoint_group
        )
        if self.rank == 0:
            (folder / STATE).write_text(json.dumps(asdict(self.state)) + "\n")

        def wait_until_written(checkpoint: Checkpoint, name: str) -> Checkpoint:
            written.result()
            return checkpoint

        ray.train.report(
            {"step": self.state.step},
            checkpoint=Checkpoint.from_directory(str(folder)),
            checkpoint_dir_name=name,
            checkpoint_upload_mode=CheckpointUploadMode.ASYNC,
            checkpoint_upload_fn=wait_until_written,
            delete_local_checkpoint_after_upload=False,
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


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether a GPU's or the machine's memory was too small. On CPUs torch has no type of its own for that."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


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
