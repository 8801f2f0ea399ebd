"""From the command line to a trained folder: make the plan, and hand it to Ray Train."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from training.data.bad_row import BadRowCounter
from training.run.local_ray import connect
from training.run.recipe import Recipe, with_overrides

if TYPE_CHECKING:
    from training.run.plan import Plan

RUNS = Path("streamchat-runs")  # in the home folder, unless --out says otherwise


def argument_parser(recipes: Mapping[str, Recipe], about: str | None) -> argparse.ArgumentParser:
    """The options that all training has."""
    parser = argparse.ArgumentParser(description=(about or "").split("\n")[0])
    add = parser.add_argument
    add("--recipe", choices=recipes, required=True, help="numbers to start from; see training/run/recipe.py")
    add("--set", nargs="+", default=[], metavar="KEY=VALUE", help="fields of the recipe to change")
    add("--model", help="StreamChat folder to start from, or `new-tiny`")
    add("--vision", type=Path, help="for new-tiny: what pretrain_vision.py wrote")
    add("--rows", nargs="+", default=[], help="rows, .parquet or .jsonl, local or URLs")
    add(
        "--clips",
        nargs="+",
        type=Path,
        default=[],
        help="folders of live-world clips, for questions made on the way",
    )
    add(
        "--out",
        type=Path,
        help=f"folder to write (default: ~/{RUNS}/RECIPE); a run that was killed goes on in it",
    )
    add("--cache", type=Path, help="folder in which decoded frames are kept for later runs")
    add(
        "--workers",
        default="1",
        help="processes that train: a number, or least:most for as many as there are",
    )
    add("--threads", type=int, default=1, help="CPU threads of each")
    add("--tries", type=int, default=8, help="how often a lost worker is replaced")
    add(
        "--ray",
        help="address of a Ray cluster; `local` for a private one (default: the job's own, else private)",
    )
    return parser


def main(recipes: Mapping[str, Recipe], about: str | None) -> None:
    """Read the command line, train, and say where the folder is."""
    parser = argument_parser(recipes, about)
    options = parser.parse_args()
    try:
        recipe = with_overrides(recipes[options.recipe], options.set)
        workers = _workers(options.workers)
        options.out = options.out or Path.home() / RUNS / recipe.name
        # Only now: torch takes seconds, and whoever asks for help, or mistypes an option, need not wait for it.
        from training.monitoring.provenance import write_provenance
        from training.run.plan_builder import make_plan, trainable

        plan = make_plan(recipe, options)
        learning = trainable(recipe, plan.start)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    if (plan.out / "config.json").is_file():
        parser.exit(0, f"{plan.out} is finished; to train anew, give another --out\n")
    write_provenance(plan, sys.argv, learning, max(workers) if isinstance(workers, tuple) else workers)
    _fit(plan, workers, options)
    if why := _stopped(plan):
        parser.exit(1, f"stopped: {why}\n")
    print(f"trained: {plan.out}")


def _workers(text: str) -> int | tuple[int, int]:
    try:
        numbers = [int(part) for part in text.split(":")]
    except ValueError:
        numbers = []
    if not 1 <= len(numbers) <= 2 or numbers[0] < 1 or numbers[-1] < numbers[0]:
        raise ValueError(f"--workers: got {text!r}, wanted a number such as 2, or least:most such as 1:4")
    return numbers[0] if len(numbers) == 1 else (numbers[0], numbers[1])


def _fit(plan: Plan, workers: int | tuple[int, int], options: argparse.Namespace) -> None:
    """Run Ray Train until the end."""
    connect(options.ray, needs_dashboard=True)
    # Only now: Ray reads its settings from the environment when it is imported.
    import ray
    from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    from training.run.micro_batch_stream import MicroBatchDataConfig
    from training.run.train_loop import train

    most = workers[1] if isinstance(workers, tuple) else workers
    there = ray.cluster_resources()
    on_gpus = there.get("GPU", 0) >= (workers[0] if isinstance(workers, tuple) else workers)
    # On a small machine workers and the tasks that feed them share what processors there are: half for the workers,
    # and each worker's tasks get the same part of the rest, in which two must fit.
    share = min(1.0, 0.5 * there["CPU"] / most)
    needs: dict[str, Any] = {"CPU": share} | ({"GPU": 1} if on_gpus else {})
    TorchTrainer(
        train,
        train_loop_config={"plan": plan},
        torch_config=TorchConfig(backend="nccl" if on_gpus else "gloo"),
        scaling_config=ScalingConfig(num_workers=workers, use_gpu=on_gpus, resources_per_worker=needs),
        run_config=RunConfig(
            name="checkpoints",
            storage_path=str(plan.run_folder),
            failure_config=FailureConfig(max_failures=options.tries),
            checkpoint_config=CheckpointConfig(num_to_keep=2),
        ),
        datasets={"parts": ray.data.range(1)},
        dataset_config=MicroBatchDataConfig(plan, task_cpus=0.5 * share),
    ).fit()


def _stopped(plan: Plan) -> str:
    """Why the run ended early, with the bad rows by name; "" when it did not."""
    path = plan.run_folder / "stopped.json"
    if not path.is_file():
        return ""
    bad = BadRowCounter(max_share=1.0)
    seen: set[int] = set()
    for file in sorted(plan.run_folder.glob("micro_batches-*.jsonl")):
        for line in file.read_text().splitlines():
            part = json.loads(line)
            if part["part"] not in seen:
                seen.add(part["part"])
                for where, reason, detail in part["bad"]:
                    bad.reasons[reason] += 1
                    bad.first_of.setdefault(reason, f"{where}: {detail}")
    num = json.loads(path.read_text())
    path.unlink()
    limit = f"more than max_bad_share {plan.recipe.max_bad_share:.1%}"
    return f"{num['bad']} of {num['rows']} rows are bad, {limit}: {bad.summary()}"
