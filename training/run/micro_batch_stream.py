"""The stream of micro-batches from files to workers. Ray Data tasks on any machine read, decode, tokenize and pack.

Ray Train splits a data set by handing out blocks as they come. Here micro-batch k of the run always goes to worker k
modulo the number of workers, and a step has the same samples with any number of workers. `MicroBatchDataConfig` gives
each worker its own stream, and the worker says at which step the stream starts.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

import pyarrow as pa
import ray
from ray.data import DataContext, DataIterator, Dataset
from ray.data._internal.datasource.range_datasource import RangeDatasource
from ray.data._internal.execution.execution_callback import ExecutionCallback
from ray.train import DataConfig

from training.data.micro_batch import MicroBatch
from training.run.micro_batch_source import cached_source
from training.run.plan import Plan

CHUNK = 4096  # micro-batches of one Ray data set: Ray plans all blocks before it makes the first one


@dataclass(frozen=True, slots=True, kw_only=True)
class MicroBatchStream:
    """The micro-batches of one worker, in order."""

    plan: Plan
    rank: int
    world_size: int
    task_cpus: float  # CPUs of the task that makes a micro-batch

    def steps(self, first_step: int) -> Iterator[list[MicroBatch]]:
        """The worker's micro-batches of each step, from `first_step` to the end of the run.

        All workers get the same number of micro-batches in a step. Empty ones fill up those of the live world.
        """
        stream = self.micro_batches(first_step)
        per_step = self._per_step
        per_worker = -(-per_step // self.world_size)
        for step in range(first_step, self.plan.total_steps):
            indices = range(step * per_step, (step + 1) * per_step)
            batches = [next(stream) for index in indices if index % self.world_size == self.rank]
            assert all(batch.index in indices for batch in batches), "a micro-batch came in the wrong order"
            yield batches + [cached_source(self.plan).empty() for _ in range(per_worker - len(batches))]

    @property
    def _per_step(self) -> int:
        return self.plan.micro_batches_per_step(self.world_size)

    def micro_batches(self, first_step: int) -> Iterator[MicroBatch]:
        """The worker's micro-batches from a step to the end of the run. Tasks make the next ones in advance."""
        first, end = first_step * self._per_step, self.plan.total_steps * self._per_step
        indices = range(first + (self.rank - first) % self.world_size, end, self.world_size)
        _configure_ray_data()
        while indices:
            yield from self._make(indices[:CHUNK])
            indices = indices[CHUNK:]

    def _make(self, indices: range) -> Iterator[MicroBatch]:
        plan, num_workers = self.plan, self.world_size

        def make(row: dict[str, Any]) -> dict[str, Any]:
            index = indices[int(row["id"])]
            return {"micro_batch": cached_source(plan).micro_batch(index, num_workers).to_bytes()}

        # One micro-batch is one block, so the tasks that run at the same time make the micro-batches that come next.
        # With larger blocks one task would make the first thousand. The read task gets `num_cpus` too, because its
        # default is a whole CPU, which a worker's share of a small machine may not have.
        dataset = ray.data.read_datasource(
            RangeDatasource(len(indices), block_format="arrow", column_name="id"),
            num_cpus=self.task_cpus,
            override_num_blocks=len(indices),
        ).map(make, num_cpus=self.task_cpus)
        prefetch = 2 * max(self._per_step // num_workers, 1)
        for table in dataset.iter_batches(batch_size=1, batch_format="pyarrow", prefetch_batches=prefetch):
            yield MicroBatch.from_bytes(cast(pa.Table, table).column("micro_batch")[0].as_py())


class MicroBatchDataConfig(DataConfig):
    """Gives each worker its `MicroBatchStream` as its shard of the data set."""

    def __init__(self, plan: Plan, task_cpus: float) -> None:
        super().__init__(datasets_to_split="all")
        self.plan, self.task_cpus = plan, task_cpus

    def configure(
        self, datasets: dict[str, Dataset], world_size: int, *args: Any, **kwargs: Any
    ) -> list[dict[str, DataIterator]]:
        """One stream for each worker."""
        streams = (
            MicroBatchStream(plan=self.plan, rank=rank, world_size=world_size, task_cpus=self.task_cpus)
            for rank in range(world_size)
        )
        return [{name: cast(DataIterator, stream) for name in datasets} for stream in streams]


class SchedulerThrottle(ExecutionCallback):
    """Slows Ray Data's scheduler. It runs in the worker's process, and its busy loop would halve training's speed."""

    def on_execution_step(self, executor: object) -> None:
        """Ray Data calls this in each iteration of its loop."""
        time.sleep(0.02)


def _configure_ray_data() -> None:
    context = DataContext.get_current()
    context.custom_execution_callback_classes = [SchedulerThrottle]
    context.execution_options.preserve_order = True
    context.enable_progress_bars = False
    context.print_on_execution_start = False
