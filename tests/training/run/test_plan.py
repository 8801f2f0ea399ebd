"""A run's length, and which parts it is made of."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.random_folder import make_random_folder
from training.data.row_micro_batches import write_row_table
from training.live_world.clips import Clip
from training.live_world.smoke_clips import question_rows
from training.run.micro_batch_source import MicroBatchSource, cached_source
from training.run.plan import Plan
from training.run.recipe import smoke


@pytest.fixture(scope="module")
def plan(clips: list[Clip], tmp_path_factory: pytest.TempPathFactory) -> Plan:
    work = tmp_path_factory.mktemp("plan")
    num = write_row_table(work / "rows.arrow", question_rows(clips[0].path.parent))
    recipe = replace(smoke(), steps=0, global_batch=5, micro_batch=5, world_share=0.25)
    start = make_random_folder(work / "start")
    return Plan(recipe=recipe, start=start, out=work / "out", table=work / "rows.arrow", num_rows=num)


def test_epochs_make_steps(plan: Plan) -> None:
    assert plan.num_rows == 12
    assert plan.total_steps == 3
    assert replace(plan, recipe=replace(plan.recipe, epochs=2.0)).total_steps == 5
    assert replace(plan, recipe=replace(plan.recipe, steps=7)).total_steps == 7


def test_an_epoch_has_every_row_once(plan: Plan) -> None:
    parts = [MicroBatchSource(plan).micro_batch(number) for number in range(3)]
    assert [len(part.samples) for part in parts] == [5, 5, 2]
    assert len({sample for part in parts for sample in part.samples}) == 12


def test_beside_the_live_world_no_row_is_left_out(plan: Plan, clips: list[Clip], tmp_path: Path) -> None:
    np.save(tmp_path / "seen.npy", np.zeros((2, 100, 96, 96, 3), np.uint8))
    mixed = replace(
        plan, recipe=replace(plan.recipe, steps=8), clips=(clips[0].path.parent,), seen=tmp_path / "seen.npy"
    )
    parts = [MicroBatchSource(mixed).micro_batch(number) for number in range(8)]
    assert sum(part.samples[0].startswith("world-") for part in parts) == 2
    rows = [s for part in parts for s in part.samples if not s.startswith("world-")]
    assert len(rows) == 30
    assert len(set(rows[:12])) == len(set(rows[12:24])) == 12


def test_a_process_makes_a_source_once(plan: Plan) -> None:
    assert cached_source(plan) is cached_source(replace(plan))
