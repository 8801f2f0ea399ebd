"""The three steps of a training script: read the options, prepare the run, and train with Ray Train."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from training.data.bad_row import BadRowCounter
from training.run.local_ray import connect
from training.run.recipe import Recipe, with_overrides

if TYPE_CHECKING:
    from training.run.plan import Plan

RUNS = Path("streamchat-runs")  # in the home folder, unless --out is given


def parse_options(recipes: Mapping[str, Recipe], about: str | None) -> tuple[Recipe, argparse.Namespace]:
    """The recipe with the changes of --set, and the options. Ends the program with status 2 for a mistake."""
    parser = _argument_parser(recipes, about)
    options = parser.parse_args()
    try:
        recipe = with_overrides(recipes[options.recipe], options.set)
    except ValueError as error:
        parser.error(str(error))
    options.out = options.out or Path.home() / RUNS / recipe.name
    return recipe, options


def _argument_parser(recipes: Mapping[str, Recipe], about: str | None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(about or "").split("\n")[0])
    add = parser.add_argument
    add("--recipe", choices=recipes, required=True, help="recipe to use; see training/run/recipe.py")
    add("--set", nargs="+", default=[], metavar="KEY=VALUE", help="fields of the recipe to change")
    add("--model", help="StreamChat folder to start from, or `new-tiny`")
    add("--vision", type=Path, help="for new-tiny: weights that pretrain_vision.py wrote")
    add("--rows", nargs="+", default=[], help="files of rows: .parquet or .jsonl, local paths or URLs")
    add(
        "--validation",
        nargs="+",
        default=[],
        help="files of rows whose loss is reported and never learnt from",
    )
    add(
        "--clips",
        nargs="+",
        type=Path,
        default=[],
        help="folders of live-world clips; questions about them are made during training",
    )
    add(
        "--out",
        type=Path,
        help=f"folder to write (default: ~/{RUNS}/RECIPE); a killed run continues in its folder",
    )
    add("--cache", type=Path, help="folder that keeps decoded frames for later runs")
    add(
        "--workers",
        type=_num_workers,
        default=1,
        metavar="NUM|MIN:MAX",
        help="number of training processes, or MIN:MAX for as many as the cluster has",
    )
    add(
        "--device",
        choices=("auto", "cuda", "cpu"),
        default="auto",
        help="auto: GPUs if the cluster has some; cuda: wait until it has enough (default: auto)",
    )
    add("--threads", type=int, default=1, help="CPU threads of each worker")
    add("--tries", type=int, default=8, help="how many lost workers are replaced")
    add(
        "--ray",
        help="address of a Ray cluster, or `local` for a private one (default: the job's cluster, or a private one)",
    )
    return parser


def _num_workers(text: str) -> int | tuple[int, int]:
    try:
        numbers = [int(part) for part in text.split(":")]
    except ValueError:
        numbers = []
    if not 1 <= len(numbers) <= 2 or numbers[0] < 1 or numbers[-1] < numbers[0]:
        raise argparse.ArgumentTypeError(f"got {text!r}, wanted a number such as 2, or MIN:MAX such as 1:4")
    return numbers[0] if len(numbers) == 1 else (numbers[0], numbers[1])


def prepare_run(recipe: Recipe, options: argparse.Namespace) -> Plan:
    """Build the plan and write `recipe.json`. Ends the program if an option is wrong or the run is finished."""
    # Imported here because torch takes seconds to load. --help and wrong options must not wait for it.
    from training.monitoring.provenance import write_provenance
    from training.run.plan_builder import build_plan, check_same_recipe, describe_trainable

    try:
        check_same_recipe(recipe, options)
        if (options.out / "config.json").is_file():
            _exit(0, f"{options.out} is finished; to train again, give another --out")
        plan = build_plan(recipe, options)
        trainable = describe_trainable(recipe, plan.initial_model)
    except (ValueError, OSError) as error:
        _exit(2, f"error: {error}")
    write_provenance(plan, sys.argv, trainable, _max_workers(options.workers))
    return plan


def run_training(plan: Plan, options: argparse.Namespace) -> None:
    """Train with Ray Train until the end of the run. Ends the program with status 1 if the run stops early."""
    plan.stopped_file.unlink(missing_ok=True)  # of a start that was killed before it could say it
    _run_trainer(plan, options.workers, options)
    if reason := stop_reason(plan):
        _exit(1, f"stopped: {reason}")


def _run_trainer(plan: Plan, workers: int | tuple[int, int], options: argparse.Namespace) -> None:
    connect(options.ray, needs_dashboard=True)
    # Imported here because Ray reads its settings from the environment when it is imported.
    import ray
    from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    from training.run.micro_batch_stream import MicroBatchDataConfig
    from training.run.train_loop import CHECKPOINTS, train_loop_per_worker

    resources = ray.cluster_resources()
    try:
        on_gpus = uses_gpus(options.device, _min_workers(workers), int(resources.get("GPU", 0)))
    except ValueError as error:
        _exit(2, f"error: {error}")
    # On a small machine the workers get half of the CPUs. The Ray Data tasks of each worker get the same share of the
    # other half, and two tasks must fit in it.
    share = min(1.0, 0.5 * resources["CPU"] / _max_workers(workers))
    worker_resources: dict[str, Any] = {"CPU": share} | ({"GPU": 1} if on_gpus else {})
    TorchTrainer(
        train_loop_per_worker,
        train_loop_config={"plan": plan},
        torch_config=TorchConfig(backend="nccl" if on_gpus else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=workers, use_gpu=on_gpus, resources_per_worker=worker_resources
        ),
        run_config=RunConfig(
            name=CHECKPOINTS,
            storage_path=str(plan.run_folder),
            failure_config=FailureConfig(max_failures=options.tries),
            checkpoint_config=CheckpointConfig(num_to_keep=2),
        ),
        datasets={"micro_batches": ray.data.range(1)},  # a placeholder: `MicroBatchDataConfig` makes the data
        dataset_config=MicroBatchDataConfig(plan, task_cpus=0.5 * share),
    ).fit()


def uses_gpus(device: str, num_workers: int, num_gpus: int) -> bool:
    """Whether to train on GPUs. `device`: "auto" (on GPUs if the cluster has some), "cuda" or "cpu".

    Raises ValueError for "auto" on a cluster that has some GPUs, but fewer than workers.
    """
    if device == "auto" and 0 < num_gpus < num_workers:
        raise ValueError(
            f"--workers: got {num_workers}, but the cluster has {num_gpus} GPUs: give --workers {num_gpus}, or "
            "--device cuda to wait for more GPUs, or --device cpu"
        )
    return device == "cuda" or (device == "auto" and num_gpus > 0)


def stop_reason(plan: Plan) -> str:
    """Why the run stopped early, with examples of the bad rows; "" if it did not stop early."""
    if not plan.stopped_file.is_file():
        return ""
    counts = json.loads(plan.stopped_file.read_text())
    plan.stopped_file.unlink()
    if "reason" in counts:
        return counts["reason"]
    limit = f"more than max_bad_share {plan.recipe.max_bad_share:.1%}"
    return f"{counts['bad']} of {counts['rows']} rows are bad, {limit}: {_bad_rows(plan).summary()}"


def _bad_rows(plan: Plan) -> BadRowCounter:
    """The bad rows of all micro-batches so far."""
    workers_of: dict[int, int] = {}  # of each step: after a restart others may have repeated it
    bad_of: dict[tuple[int, int], list[tuple[str, str, str]]] = {}  # by step and micro-batch
    for file in sorted(plan.run_folder.glob("micro_batches-*.jsonl")):
        for record in map(json.loads, file.read_text().splitlines()):
            if workers_of.setdefault(record["step"], record["workers"]) == record["workers"]:
                bad_of[record["step"], record["micro_batch"]] = record["bad"]
    bad = BadRowCounter(max_share=1.0)
    for where, reason, detail in (row for rows in bad_of.values() for row in rows):
        bad.reasons[reason] += 1
        bad.first_of.setdefault(reason, f"{where}: {detail}")
    return bad


def _min_workers(workers: int | tuple[int, int]) -> int:
    return workers[0] if isinstance(workers, tuple) else workers


def _max_workers(workers: int | tuple[int, int]) -> int:
    return workers[1] if isinstance(workers, tuple) else workers


def _exit(status: int, message: str) -> NoReturn:
    print(f"{Path(sys.argv[0]).name}: {message}", file=sys.stderr)
    raise SystemExit(status)
