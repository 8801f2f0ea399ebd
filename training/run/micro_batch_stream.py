"""The stream of micro-batches from files to workers. Ray Data tasks on any machine read, decode, tokenize and pack.

Ray Train's own way to split a data set hands out blocks as they come. Here micro-batch k of a step always goes to
worker k modulo the number of workers, so a run is repeatable with any number of them. `MicroBatchDataConfig` gives each
worker a stream of its own, and the worker says from which step on.
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

CHUNK = 4096  # parts of one Ray data set: it plans all of its blocks before the first is made


@dataclass(frozen=True, slots=True, kw_only=True)
class MicroBatchStream:
    """A worker's parts, in their order."""

    plan: Plan
    rank: int
    world_size: int
    task_cpus: float  # that making a part takes

    def parts(self, first_step: int) -> Iterator[MicroBatch]:
        """This worker's parts from a step on, to the end of the run; those that come next are made meanwhile."""
        first = first_step * self.plan.recipe.micro_batches_per_step
        left = range(
            first + (self.rank - first) % self.world_size, self.plan.num_micro_batches, self.world_size
        )
        _quiet_and_in_order()
        while left:
            yield from self._made(left[:CHUNK])
            left = left[CHUNK:]

    def _made(self, numbers: range) -> Iterator[MicroBatch]:
        plan = self.plan

        def made(row: dict[str, Any]) -> dict[str, Any]:
            return {"part": cached_source(plan).micro_batch(numbers[int(row["id"])]).to_bytes()}

        # One part a block: so tasks make the parts that come next side by side, not one the first thousand. Counting
        # takes a whole CPU unless it is told otherwise, which a worker's share of a small machine may not have.
        parts = ray.data.read_datasource(
            RangeDatasource(len(numbers), block_format="arrow", column_name="id"),
            num_cpus=self.task_cpus,
            override_num_blocks=len(numbers),
        ).map(made, num_cpus=self.task_cpus)
        ahead = 2 * max(plan.recipe.micro_batches_per_step // self.world_size, 1)
        for batch in parts.iter_batches(batch_size=1, batch_format="pyarrow", prefetch_batches=ahead):
            yield MicroBatch.from_bytes(cast(pa.Table, batch).column("part")[0].as_py())

    def steps(self, first_step: int) -> Iterator[list[MicroBatch]]:
        """The same, step by step: as many parts as any worker has in it, empty ones for what is missing."""
        stream = self.parts(first_step)
        per_step = self.plan.recipe.micro_batches_per_step
        most = -(-per_step // self.world_size)
        for step in range(first_step, self.plan.total_steps):
            numbers = range(step * per_step, (step + 1) * per_step)
            parts = [next(stream) for n in numbers if n % self.world_size == self.rank]
            assert all(part.index in numbers for part in parts), "a part came out of its order"
            yield parts + [cached_source(self.plan).empty() for _ in range(most - len(parts))]


class MicroBatchDataConfig(DataConfig):
    """Gives each worker its `MicroBatchStream` as its shard of the data set "parts"."""

    def __init__(self, plan: Plan, task_cpus: float) -> None:
        super().__init__(datasets_to_split="all")
        self.plan, self.task_cpus = plan, task_cpus

    def configure(
        self, datasets: dict[str, Dataset], world_size: int, *args: Any, **kwargs: Any
    ) -> list[dict[str, DataIterator]]:
        """A stream for every worker and data set."""
        streams = (
            MicroBatchStream(plan=self.plan, rank=rank, world_size=world_size, task_cpus=self.task_cpus)
            for rank in range(world_size)
        )
        return [{name: cast(DataIterator, stream) for name in datasets} for stream in streams]


class SchedulerThrottle(ExecutionCallback):
    """Ray Data's scheduler turns without pause while no task runs, in the worker's own process: it would train half."""

    def on_execution_step(self, executor: object) -> None:
        """Called at each turn."""
        time.sleep(0.02)


def _quiet_and_in_order() -> None:
    context = DataContext.get_current()
    context.custom_execution_callback_classes = [SchedulerThrottle]
    context.execution_options.preserve_order = True
    context.enable_progress_bars = False
    context.print_on_execution_start = False
