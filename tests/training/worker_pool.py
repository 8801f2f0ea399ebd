"""Training processes without Ray. They stay alive for several runs, because their imports take seconds."""

from __future__ import annotations

import json
import os
import pickle
import resource
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from uuid import uuid4

from model.config import PROJECT_ROOT


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainTask:
    """The task of one worker: steps `first` to `last` of a plan."""

    plan: Any
    rank: int
    num_workers: int
    store: Path  # rendezvous file of torch.distributed
    first: int
    last: int
    save: Path | None  # folder for a checkpoint and the model
    load: Path | None  # checkpoint to start from
    local_size: int  # workers of a node


class WorkerPool:
    """A number of worker processes."""

    def __init__(self, size: int) -> None:
        command = [sys.executable, "-m", "tests.training.worker_pool"]
        paths = os.pathsep.join(path for path in (str(PROJECT_ROOT), os.environ.get("PYTHONPATH")) if path)
        self._processes = [
            subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                cwd=PROJECT_ROOT,
                env=os.environ | {"PYTHONPATH": paths},
            )
            for _ in range(size)
        ]

    def train(
        self, plan: Any, num_workers: int, work: Path, first: int = 0, last: int | None = None,
        save: Path | None = None, load: Path | None = None, local_size: int | None = None,
    ) -> list[dict[str, Any]]:  # fmt: skip
        """Run steps `first` to `last` with some of the workers. Returns the report of each worker (see `train`)."""
        work.mkdir(parents=True, exist_ok=True)
        store = work / f"store-{uuid4().hex}"
        end = plan.total_steps if last is None else last
        processes = self._processes[:num_workers]
        for rank, process in enumerate(processes):
            task = TrainTask(
                plan=plan,
                rank=rank,
                num_workers=num_workers,
                store=store,
                first=first,
                last=end,
                save=save,
                load=load,
                local_size=local_size or num_workers,
            )
            path = work / f"task-{rank}.pickle"
            path.write_bytes(pickle.dumps(task))
            assert process.stdin is not None
            process.stdin.write(f"{path}\n".encode())
            process.stdin.flush()
        lines = [process.stdout.readline() for process in processes if process.stdout is not None]
        assert all(lines), "a worker has ended: its output is above"
        return [json.loads(line) for line in lines]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in self._processes:
            process.kill()
            process.communicate()


def main() -> None:
    """Run a worker: each line of stdin names the file of a task, and each line of stdout is a report."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        print(json.dumps(train(pickle.loads(Path(line.strip()).read_bytes()))), file=out, flush=True)


def train(task: TrainTask) -> dict[str, Any]:
    """Run a task. Returns the results of its steps, the bytes of its tensors, and the growth of its peak memory."""
    import torch
    import torch.distributed as dist

    from model.config import StreamChatConfig
    from model.network.streamchat import StreamChat
    from training.optimise.objective import Objective
    from training.optimise.optimizers import Optimizers
    from training.optimise.trainable import set_trainable
    from training.run.micro_batch_source import MicroBatchSource
    from training.run.sharding import (
        load_checkpoint,
        load_weights,
        local_bytes,
        make_mesh,
        save_checkpoint,
        save_model_folder,
        shard,
    )
    from training.run.train_step import StepRunner

    torch.set_num_threads(1)
    before_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    plan, rank, num_workers = task.plan, task.rank, task.num_workers
    dist.init_process_group("gloo", init_method=f"file://{task.store}", rank=rank, world_size=num_workers)
    cpu, recipe = torch.device("cpu"), plan.recipe
    with torch.device("meta"):
        model = StreamChat(StreamChatConfig.load(plan.initial_model))
    set_trainable(model, recipe.trainable)
    objective = Objective(model)
    shard(objective, make_mesh("cpu", num_workers, task.local_size, recipe), recipe)
    load_weights(model, plan.initial_model, cpu)
    optimizers = Optimizers.of(model, recipe)
    if task.load is not None:
        load_checkpoint(task.load, model, optimizers.all)
    step_runner, source = StepRunner(objective, optimizers, recipe, cpu), MicroBatchSource(plan)
    per_step = plan.micro_batches_per_step(num_workers)
    steps: list[dict[str, Any]] = []
    for step in range(task.first, task.last):
        indices = [n for n in range(step * per_step, (step + 1) * per_step) if n % num_workers == rank]
        batches = [source.micro_batch(index, num_workers) for index in indices]
        steps.append(asdict(step_runner.step(batches, step / plan.total_steps)))
    num_bytes = local_bytes(model, optimizers.all)
    if task.save is not None:
        save_checkpoint(task.save, model, optimizers.all).result()
        save_model_folder(model, plan.initial_model, task.save / "folder", writes=rank == 0)
    dist.destroy_process_group()
    grown_bytes = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kb) * 1024
    return {"steps": steps, "bytes": num_bytes, "grown_bytes": grown_bytes}


if __name__ == "__main__":
    main()
