"""Builds the plan of a run: checks the options, prepares the initial model, and collects the rows."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import asdict
from hashlib import blake2b
from itertools import islice
from pathlib import Path

import torch

from model.checkpoint.folder import load_vision
from model.config import SHIPPED_FOLDER, StreamChatConfig
from model.network.streamchat import StreamChat
from training.data.bad_row import BadRowCounter
from training.data.balance import RowCost
from training.data.row_files import read_rows
from training.data.row_micro_batches import write_row_table
from training.data.training_row import TrainingRow, cut_windows
from training.live_world.clip_frames import frame_file
from training.live_world.clips import training_clips
from training.live_world.smoke_clips import smoke_rows, smoke_validation_rows
from training.monitoring.flops import TrainingFlops
from training.optimise.trainable import set_trainable
from training.run.initial_model import meta_model, new_tiny_folder, prepare_initial_model
from training.run.plan import Plan
from training.run.recipe import Recipe

# A resumed run may have other values of these. Its samples and steps stay the same.
CHANGEABLE = {
    *("micro_batch", "checkpoint_activations", "compile", "flex", "hybrid_shard"),
    *("report_every", "save_every", "validate_every", "validation_rows", "max_bad_share", "max_skipped"),
}


def build_plan(recipe: Recipe, options: argparse.Namespace) -> Plan:
    """Write the files that workers read, and return the plan. Raises ValueError or OSError for wrong options."""
    torch.set_num_threads(options.threads)
    out: Path = options.out.resolve()
    run_folder = out / "run"
    clips = training_clips(options.clips)  # refuses held-out clips before anything is written
    run_folder.mkdir(parents=True, exist_ok=True)
    cache = options.cache.resolve() if options.cache else run_folder / "cache"
    if not options.rows and not clips and recipe.name != "smoke":
        raise ValueError("nothing to train on: give --rows or --clips")
    if clips and not recipe.steps:
        raise ValueError("with --clips the recipe needs a number of steps: --set steps=N")
    initial_model = _initial_model(recipe, options, run_folder)
    describe_trainable(recipe, initial_model)  # refuses unknown parts of the model before it reads the rows
    row_paths, validation_paths = list(options.rows), list(options.validation)
    if recipe.name == "smoke" and not row_paths:
        row_paths, validation_paths = smoke_rows(run_folder), smoke_validation_rows(run_folder)
    row_table, num_rows = None, 0
    data = blake2b(digest_size=12)
    for clip in clips:
        data.update(f"{clip.world.seed} {clip.path.name}\n".encode())
    if row_paths:
        row_table = run_folder / "rows.arrow"
        rows = _hashed(rows_of_recipe(row_paths, recipe), data)
        num_rows = write_row_table(row_table, rows, row_cost(recipe, initial_model))
        if not num_rows:
            raise ValueError(f"no rows of kinds {', '.join(recipe.kinds)} in {', '.join(row_paths)}")
    validation_table = None
    if validation_paths:
        validation_table = run_folder / "validation.arrow"
        validation_rows = islice(rows_of_recipe(validation_paths, recipe), recipe.validation_rows)
        if not write_row_table(validation_table, validation_rows, row_cost(recipe, initial_model)):
            raise ValueError(
                f"--validation: no rows of kinds {', '.join(recipe.kinds)} in {validation_paths}"
            )
    _check_same_data(data.hexdigest(), run_folder / "recipe.json")
    clip_frames = None
    if clips:
        # The output of a frozen encoder never changes, so it is computed once.
        frozen = not row_paths and not {"all", "vision"} & set(recipe.trainable)
        tower = load_vision(initial_model) if frozen else None
        clip_frames = frame_file(clips, StreamChatConfig.load(initial_model), tower, cache)
    return Plan(
        recipe=recipe, initial_model=initial_model.resolve(), out=out, row_table=row_table, num_rows=num_rows,
        clip_frames=clip_frames, clips=tuple(folder.resolve() for folder in options.clips),
        num_threads=options.threads, fingerprint=data.hexdigest(),
        validation_table=validation_table,
        frame_cache=cache if options.cache or recipe.name == "smoke" else None,
    )  # fmt: skip


def rows_of_recipe(paths: list[str], recipe: Recipe) -> Iterator[TrainingRow]:
    """Good rows of the recipe's kinds. Dense rows are cut into windows. Raises ValueError for too many bad rows."""
    bad = BadRowCounter(max_share=recipe.max_bad_share)
    for row in read_rows(paths, bad):
        if row.kind in recipe.kinds:
            dense = row.kind == "dense"
            yield from cut_windows(row, recipe.max_frames, recipe.frames_per_second) if dense else [row]
    print(f"{bad.num_good} good rows; skipped: {bad.summary()}", file=sys.stderr)


def row_cost(recipe: Recipe, initial_model: Path) -> RowCost:
    """What a row costs the model."""
    flops = TrainingFlops.of(meta_model(StreamChatConfig.load(initial_model), recipe))
    return RowCost(
        per_token=flops.per_token,
        per_frame=flops.per_frame,
        frames_per_second=recipe.frames_per_second,
        max_frames=recipe.max_frames,
    )


def describe_trainable(recipe: Recipe, initial_model: Path) -> list[str]:
    """One line for each part of the model, with whether it learns. Raises ValueError for an unknown part."""
    with torch.device("meta"):
        return set_trainable(StreamChat(StreamChatConfig.load(initial_model)), recipe.trainable)


def _initial_model(recipe: Recipe, options: argparse.Namespace, run_folder: Path) -> Path:
    """The StreamChat folder to start from."""
    if options.model == "new-tiny":
        given = new_tiny_folder(run_folder / "new", options.vision, recipe.seed)
    elif options.model or recipe.name == "smoke":
        given = Path(options.model or SHIPPED_FOLDER)
    else:
        raise ValueError("--model: give a StreamChat folder (see `streamchat assemble`), or new-tiny")
    return prepare_initial_model(recipe, given, run_folder / "start")


def _hashed(rows: Iterator[TrainingRow], data: blake2b) -> Iterator[TrainingRow]:
    """The same rows, each added to the hash."""
    for row in rows:
        data.update(json.dumps(row.as_dict(), sort_keys=True).encode())
        yield row


def check_same_recipe(recipe: Recipe, options: argparse.Namespace) -> None:
    """Raise ValueError when the folder has a run whose results would differ from those of this recipe."""
    path = options.out / "run" / "recipe.json"
    if not path.is_file():
        return
    before = json.loads(path.read_text())["recipe"]
    now = json.loads(json.dumps(asdict(recipe)))
    may_change = CHANGEABLE - ({"micro_batch"} if options.clips else set())
    if changed := sorted(key for key in now if before.get(key) != now[key] and key not in may_change):
        raise ValueError(
            f"{options.out} has a run with another recipe ({', '.join(changed)}): give another --out"
        )


def _check_same_data(fingerprint: str, path: Path) -> None:
    """Raise ValueError when the folder has a run on other rows or clips."""
    before = json.loads(path.read_text()).get("data", fingerprint) if path.is_file() else fingerprint
    if before != fingerprint:
        raise ValueError(
            f"{path.parent.parent} has a run on other data: its fingerprint is {before}, that of these rows and clips "
            f"is {fingerprint}; give the same data or another --out"
        )
