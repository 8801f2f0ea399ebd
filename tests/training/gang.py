"""A few processes that train together as Ray's workers do, without Ray. No test.

python tests/training/gang.py PLAN.pickle RANK WORLD_SIZE STORE FIRST LAST SAVE_OR_- LOAD_OR_-
"""

from __future__ import annotations

import json
import pickle
import resource
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]


def train_together(
    plan: Any, workers: int, work: Path, first: int = 0, last: int | None = None,
    save: Path | None = None, load: Path | None = None,
) -> list[dict[str, Any]]:  # fmt: skip
    """Steps `first` to `last` by so many processes; what each tells: its steps, and what it holds."""
    work.mkdir(parents=True, exist_ok=True)
    (work / "plan.pickle").write_bytes(pickle.dumps(plan))
    ends = [str(first), str(plan.total_steps if last is None else last), str(save or "-"), str(load or "-")]
    command = [sys.executable, __file__, str(work / "plan.pickle")]
    store = work / f"store-{workers}-{first}"
    store.unlink(missing_ok=True)
    running = [
        subprocess.Popen(
            [*command, str(rank), str(workers), str(store), *ends],
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        for rank in range(workers)
    ]
    said = [process.communicate()[0] for process in running]
    assert [process.returncode for process in running] == [0] * workers
    return [json.loads(text.splitlines()[-1]) for text in said]


def main() -> None:
    """Train as one of them."""
    sys.path.insert(0, str(ROOT))
    import torch
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh

    from model.config import StreamChatConfig
    from model.network import StreamChat
    from training.objective import Objective
    from training.optimizers import Optimizers
    from training.plan import Source
    from training.sharding import held_bytes, load_state, read_weights, save_state, shard, write_folder
    from training.step import Stepper
    from training.trainable import set_trainable

    torch.set_num_threads(1)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    plan = pickle.loads(Path(sys.argv[1]).read_bytes())
    rank, workers, store = int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
    first, last, save, load = int(sys.argv[5]), int(sys.argv[6]), sys.argv[7], sys.argv[8]
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=workers)
    cpu, recipe = torch.device("cpu"), plan.recipe
    with torch.device("meta"):
        model = StreamChat(StreamChatConfig.load(plan.start))
    set_trainable(model, recipe.trainable)
    objective = Objective(model)
    shard(objective, init_device_mesh("cpu", (workers,)), recipe)
    read_weights(model, plan.start, cpu)
    optimizers = Optimizers.of(model, recipe)
    if load != "-":
        load_state(Path(load), model, optimizers.all)
    stepper, source, per_step = (
        Stepper(objective, optimizers, recipe, cpu),
        Source(plan),
        recipe.parts_per_step,
    )
    steps = []
    for step in range(first, last):
        mine = [n for n in range(step * per_step, (step + 1) * per_step) if n % workers == rank]
        parts = [source.part(number) for number in mine]
        parts += [source.empty() for _ in range(-(-per_step // workers) - len(parts))]
        steps.append(asdict(stepper.step(parts, step / plan.total_steps)))
    held = held_bytes(model, optimizers.all)
    if save != "-":
        save_state(Path(save), model, optimizers.all)
        write_folder(model, plan.start, Path(save) / "folder", writes=rank == 0)
    dist.destroy_process_group()
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    print(json.dumps({"steps": steps, "held": held, "grown": grown}))


if __name__ == "__main__":
    main()
