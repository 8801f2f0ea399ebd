"""Before a run starts: what it starts from is found and checked, its rows are read, and a plan is made."""

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
from training.run.initial_model import new_tiny_folder, prepare_start_folder
from training.run.plan import Plan
from training.run.recipe import Recipe


def make_plan(recipe: Recipe, options: argparse.Namespace) -> Plan:
    """Prepare all that workers read. ValueError or OSError say what is wrong with what was given."""
    torch.set_num_threads(options.threads)
    out: Path = options.out.resolve()
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
        num_rows = write_row_table(table, checked(rows, recipe))
        if not num_rows:
            raise ValueError(f"no rows of kinds {', '.join(recipe.kinds)} in {', '.join(rows)}")
    seen = None
    if clips:
        still = not rows and not {"all", "vision"} & set(recipe.trainable)
        tower = load_vision(start) if still else None  # its output never changes: encoded once
        seen = frame_file(clips, StreamChatConfig.load(start), tower, cache)
    return Plan(
        recipe=recipe, start=start.resolve(), out=out, table=table, num_rows=num_rows, seen=seen,
        clips=tuple(folder.resolve() for folder in options.clips), threads=options.threads,
        frame_cache=cache if options.cache or recipe.name == "smoke" else None,
    )  # fmt: skip


def checked(paths: list[str], recipe: Recipe) -> Iterator[TrainingRow]:
    """Good rows of the recipe's kinds, dense ones cut into windows; too many bad ones raise ValueError."""
    longest_s = (recipe.max_frames - 1) / recipe.frames_per_second
    bad = BadRowCounter(max_share=recipe.max_bad_share)
    for row in read_rows(paths, bad):
        if row.kind in recipe.kinds:
            yield from cut_windows(row, longest_s) if row.kind == "dense" else [row]
    print(f"{bad.num_good} good rows; skipped: {bad.summary()}", file=sys.stderr)


def _start(recipe: Recipe, options: argparse.Namespace, run: Path) -> Path:
    """The folder to start from."""
    if options.model == "new-tiny":
        given = new_tiny_folder(run / "new", options.vision, recipe.seed)
    elif options.model or recipe.name == "smoke":
        given = Path(options.model or SHIPPED_FOLDER)
    else:
        raise ValueError("--model: give a StreamChat folder (see `streamchat assemble`), or new-tiny")
    return prepare_start_folder(recipe, given, run / "start")


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
