"""From the command line to a trained folder: read the rows, make the plan, and hand both to Ray Train."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from model.config import StreamChatConfig
from model.folder import load_vision
from model.network import StreamChat
from training.bad_row import BadRows
from training.local_ray import connect
from training.plan import Plan
from training.provenance import describe
from training.recipe import Recipe, overridden
from training.row import Row, read_rows, windows
from training.row_parts import write_table
from training.smoke_clips import smoke_rows
from training.start_folder import start_folder, tiny_start
from training.trainable import set_trainable
from training.world_parts import seen_file, training_clips

RUNS = Path("streamchat-runs")  # in the home folder, unless --out says otherwise
TINY = Path(__file__).parent.parent / "model" / "streamchat-tiny"


def parser_of(recipes: Mapping[str, Recipe], about: str | None) -> argparse.ArgumentParser:
    """The options that all training has."""
    parser = argparse.ArgumentParser(description=(about or "").split("\n")[0])
    add = parser.add_argument
    add("--recipe", choices=recipes, required=True, help="numbers to start from; see training/recipe.py")
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
    parser = parser_of(recipes, about)
    options = parser.parse_args()
    try:
        recipe = overridden(recipes[options.recipe], options.set)
        workers = _workers(options.workers)
        torch.set_num_threads(options.threads)
        plan = make_plan(recipe, options)
        learning = trainable(recipe, plan.start)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    if (plan.out / "config.json").is_file():
        parser.exit(0, f"{plan.out} is finished; to train anew, give another --out\n")
    describe(plan, sys.argv, learning, max(workers) if isinstance(workers, tuple) else workers)
    _fit(plan, workers, options)
    if why := _stopped(plan):
        parser.exit(1, f"stopped: {why}\n")
    print(f"trained: {plan.out}")


def make_plan(recipe: Recipe, options: argparse.Namespace) -> Plan:
    """Prepare all that workers read. ValueError or OSError say what is wrong with what was given."""
    out: Path = (options.out or Path.home() / RUNS / recipe.name).resolve()
    run = out / "run"
    _check_same(recipe, run / "recipe.json")
    clips = training_clips(options.clips)  # refuses before anything is written
    run.mkdir(parents=True, exist_ok=True)
    cache = options.cache.resolve() if options.cache else run / "cache"
    if not options.rows and not clips and recipe.name != "smoke":
        raise ValueError("nothing to train on: give --rows or --clips")
    if clips and not recipe.steps:
        raise ValueError("with --clips the recipe needs steps: the live world has no end")
    start = _start(recipe, options, run)
    trainable(recipe, start)  # refuses what it does not know before the rows are read
    rows = list(options.rows) or (smoke_rows(run) if recipe.name == "smoke" else [])
    table, num_rows = None, 0
    if rows:
        table = run / "rows.arrow"
        num_rows = write_table(table, checked(rows, recipe))
        if not num_rows:
            raise ValueError(f"no rows of kinds {', '.join(recipe.kinds)} in {', '.join(rows)}")
    seen = None
    if clips:
        still = not rows and not {"all", "vision"} & set(recipe.trainable)
        tower = load_vision(start) if still else None  # its output never changes: encoded once
        seen = seen_file(clips, StreamChatConfig.load(start), tower, cache)
    return Plan(
        recipe=recipe, start=start.resolve(), out=out, table=table, num_rows=num_rows, seen=seen,
        clips=tuple(folder.resolve() for folder in options.clips), threads=options.threads,
        frame_cache=cache if options.cache or recipe.name == "smoke" else None,
    )  # fmt: skip


def checked(paths: list[str], recipe: Recipe) -> Iterator[Row]:
    """Good rows of the recipe's kinds, dense ones cut into windows; too many bad ones raise ValueError."""
    longest_s = (recipe.max_frames - 1) / recipe.frames_per_second
    bad = BadRows(max_share=recipe.max_bad_share)
    for row in read_rows(paths, bad):
        if row.kind in recipe.kinds:
            yield from windows(row, longest_s) if row.kind == "dense" else [row]
    print(f"{bad.num_good} good rows; skipped: {bad.summary()}", file=sys.stderr)


def _start(recipe: Recipe, options: argparse.Namespace, run: Path) -> Path:
    """The folder to start from."""
    if options.model == "new-tiny":
        given = tiny_start(run / "new", options.vision, recipe.seed)
    elif options.model or recipe.name == "smoke":
        given = Path(options.model or TINY)
    else:
        raise ValueError("--model: give a StreamChat folder (see `streamchat assemble`), or new-tiny")
    return start_folder(recipe, given, run / "start")


def trainable(recipe: Recipe, start: Path) -> list[str]:
    """A line for each part of the model, saying whether it learns; ValueError for a part that there is not."""
    with torch.device("meta"):
        return set_trainable(StreamChat(StreamChatConfig.load(start)), recipe.trainable)


def _check_same(recipe: Recipe, path: Path) -> None:
    """A run that goes on must be the run that was begun."""
    if not path.is_file():
        return
    begun = json.loads(path.read_text())["recipe"]
    now = json.loads(json.dumps(asdict(recipe)))
    if changed := sorted(key for key in now if begun.get(key) != now[key] and key != "save_every"):
        raise ValueError(
            f"{path.parent.parent} was begun with another recipe ({', '.join(changed)}): give another --out"
        )


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
    connect(options.ray, trains=True)
    # Only now: Ray reads its settings from the environment when it is imported.
    import ray
    from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    from training.feeding import PartConfig
    from training.loop import train

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
            storage_path=str(plan.run),
            failure_config=FailureConfig(max_failures=options.tries),
            checkpoint_config=CheckpointConfig(num_to_keep=2),
        ),
        datasets={"parts": ray.data.range(1)},
        dataset_config=PartConfig(plan, task_cpus=0.5 * share),
    ).fit()


def _stopped(plan: Plan) -> str:
    """Why the run ended early, with the bad rows by name; "" when it did not."""
    path = plan.run / "stopped.json"
    if not path.is_file():
        return ""
    bad = BadRows(max_share=1.0)
    seen: set[int] = set()
    for file in sorted(plan.run.glob("parts-*.jsonl")):
        for line in file.read_text().splitlines():
            part = json.loads(line)
            if part["part"] not in seen:
                seen.add(part["part"])
                for where, reason, detail in part["bad"]:
                    bad.reasons[reason] += 1
                    bad.first.setdefault(reason, f"{where}: {detail}")
    num = json.loads(path.read_text())
    path.unlink()
    limit = f"more than max_bad_share {plan.recipe.max_bad_share:.1%}"
    return f"{num['bad']} of {num['rows']} rows are bad, {limit}: {bad.summary()}"
