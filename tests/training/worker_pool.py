"""A few processes that train together as Ray's workers do, without Ray: they stay up from one training to the next."""

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
class Training:
    """What one of them is to do: steps `first` to `last` of the plan."""

    plan: Any
    rank: int
    workers: int
    store: Path  # where they meet
    first: int
    last: int
    save: Path | None
    load: Path | None


class WorkerPool:
    """So many processes. They take seconds to start: all that they import."""

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
        self, plan: Any, workers: int, work: Path, first: int = 0, last: int | None = None,
        save: Path | None = None, load: Path | None = None,
    ) -> list[dict[str, Any]]:  # fmt: skip
        """Steps `first` to `last` by the first of them; what each tells: its steps, and what it holds."""
        work.mkdir(parents=True, exist_ok=True)
        store = work / f"store-{uuid4().hex}"
        end = plan.total_steps if last is None else last
        trains = self._processes[:workers]
        for rank, process in enumerate(trains):
            training = Training(
                plan=plan,
                rank=rank,
                workers=workers,
                store=store,
                first=first,
                last=end,
                save=save,
                load=load,
            )
            path = work / f"training-{rank}.pickle"
            path.write_bytes(pickle.dumps(training))
            assert process.stdin is not None
            process.stdin.write(f"{path}\n".encode())
            process.stdin.flush()
        told = [process.stdout.readline() for process in trains if process.stdout is not None]
        assert all(told), "one of the gang is gone: what it said is above"
        return [json.loads(line) for line in told]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in self._processes:
            process.kill()
            process.communicate()


def main() -> None:
    """One of them: trains whenever a line names what."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        print(json.dumps(train(pickle.loads(Path(line.strip()).read_bytes()))), file=out, flush=True)


def train(training: Training) -> dict[str, Any]:
    """Its part; the steps, the bytes held, and how much more memory the process has taken than ever before."""
    import torch
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh

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
        save_checkpoint,
        save_model_folder,
        shard,
    )
    from training.run.train_step import StepRunner

    torch.set_num_threads(1)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    plan, rank, workers = training.plan, training.rank, training.workers
    dist.init_process_group("gloo", init_method=f"file://{training.store}", rank=rank, world_size=workers)
    cpu, recipe = torch.device("cpu"), plan.recipe
    with torch.device("meta"):
        model = StreamChat(StreamChatConfig.load(plan.start))
    set_trainable(model, recipe.trainable)
    objective = Objective(model)
    shard(objective, init_device_mesh("cpu", (workers,)), recipe)
    load_weights(model, plan.start, cpu)
    optimizers = Optimizers.of(model, recipe)
    if training.load is not None:
        load_checkpoint(training.load, model, optimizers.all)
    stepper, source = StepRunner(objective, optimizers, recipe, cpu), MicroBatchSource(plan)
    per_step = recipe.micro_batches_per_step
    steps: list[dict[str, Any]] = []
    for step in range(training.first, training.last):
        mine = [n for n in range(step * per_step, (step + 1) * per_step) if n % workers == rank]
        parts = [source.micro_batch(number) for number in mine]
        parts += [source.empty() for _ in range(-(-per_step // workers) - len(parts))]
        steps.append(asdict(stepper.step(parts, step / plan.total_steps)))
    held = local_bytes(model, optimizers.all)
    if training.save is not None:
        save_checkpoint(training.save, model, optimizers.all)
        save_model_folder(model, plan.start, training.save / "folder", writes=rank == 0)
    dist.destroy_process_group()
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    return {"steps": steps, "held": held, "grown": grown}


if __name__ == "__main__":
    main()
