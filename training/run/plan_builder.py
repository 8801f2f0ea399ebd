"""Builds the plan of a run: checks the options, prepares the initial model, and collects the rows."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import torch

from model.checkpoint.folder import load_vision
from model.config import SHIPPED_FOLDER, StreamChatConfig
from model.network.streamchat import StreamChat
from training.data.bad_row import BadRowCounter
from training.data.row_files import read_rows
from training.data.row_micro_batches import write_row_table
from training.data.training_row import TrainingRow, cut_windows
from training.live_world.clip_frames import frame_file
from training.live_world.clips import training_clips
from training.live_world.smoke_clips import smoke_rows
from training.optimise.trainable import set_trainable
from training.run.initial_model import new_tiny_folder, prepare_initial_model
from training.run.plan import Plan
from training.run.recipe import Recipe


def build_plan(recipe: Recipe, options: argparse.Namespace) -> Plan:
    """Write the files that workers read, and return the plan. Raises ValueError or OSError for wrong options."""
    torch.set_num_threads(options.threads)
    out: Path = options.out.resolve()
    run_folder = out / "run"
    _check_same_recipe(recipe, run_folder / "recipe.json")
    clips = training_clips(options.clips)  # refuses held-out clips before anything is written
    run_folder.mkdir(parents=True, exist_ok=True)
    cache = options.cache.resolve() if options.cache else run_folder / "cache"
    if not options.rows and not clips and recipe.name != "smoke":
        raise ValueError("nothing to train on: give --rows or --clips")
    if clips and not recipe.steps:
        raise ValueError("with --clips the recipe needs a number of steps: --set steps=N")
    initial_model = _initial_model(recipe, options, run_folder)
    describe_trainable(recipe, initial_model)  # refuses unknown parts of the model before it reads the rows
    row_paths = list(options.rows) or (smoke_rows(run_folder) if recipe.name == "smoke" else [])
    row_table, num_rows = None, 0
    if row_paths:
        row_table = run_folder / "rows.arrow"
        num_rows = write_row_table(row_table, rows_of_recipe(row_paths, recipe))
        if not num_rows:
            raise ValueError(f"no rows of kinds {', '.join(recipe.kinds)} in {', '.join(row_paths)}")
    clip_frames = None
    if clips:
        # The output of a frozen encoder never changes, so it is computed once.
        frozen = not row_paths and not {"all", "vision"} & set(recipe.trainable)
        tower = load_vision(initial_model) if frozen else None
        clip_frames = frame_file(clips, StreamChatConfig.load(initial_model), tower, cache)
    return Plan(
        recipe=recipe, initial_model=initial_model.resolve(), out=out, row_table=row_table, num_rows=num_rows,
        clip_frames=clip_frames, clips=tuple(folder.resolve() for folder in options.clips),
        num_threads=options.threads,
        frame_cache=cache if options.cache or recipe.name == "smoke" else None,
    )  # fmt: skip


def rows_of_recipe(paths: list[str], recipe: Recipe) -> Iterator[TrainingRow]:
    """Good rows of the recipe's kinds. Dense rows are cut into windows. Raises ValueError for too many bad rows."""
    longest_s = (recipe.max_frames - 1) / recipe.frames_per_second
    bad = BadRowCounter(max_share=recipe.max_bad_share)
    for row in read_rows(paths, bad):
        if row.kind in recipe.kinds:
            yield from cut_windows(row, longest_s) if row.kind == "dense" else [row]
    print(f"{bad.num_good} good rows; skipped: {bad.summary()}", file=sys.stderr)


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


def _check_same_recipe(recipe: Recipe, path: Path) -> None:
    """Raise ValueError when the folder has a run with another recipe."""
    if not path.is_file():
        return
    before = json.loads(path.read_text())["recipe"]
    now = json.loads(json.dumps(asdict(recipe)))
    if changed := sorted(key for key in now if before.get(key) != now[key] and key != "save_every"):
        raise ValueError(
            f"{path.parent.parent} has a run with another recipe ({', '.join(changed)}): give another --out"
        )
