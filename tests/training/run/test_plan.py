"""The length of a run and the micro-batches of its source."""

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
    initial_model = make_random_folder(work / "start")
    return Plan(
        recipe=recipe,
        initial_model=initial_model,
        out=work / "out",
        row_table=work / "rows.arrow",
        num_rows=num,
    )


def test_steps_follow_from_epochs(plan: Plan) -> None:
    assert plan.num_rows == 12
    assert plan.total_steps == 3
    assert replace(plan, recipe=replace(plan.recipe, epochs=2.0)).total_steps == 5
    assert replace(plan, recipe=replace(plan.recipe, steps=7)).total_steps == 7


def test_an_epoch_has_every_row_once(plan: Plan) -> None:
    batches = [MicroBatchSource(plan).micro_batch(number) for number in range(3)]
    assert [len(batch.sample_ids) for batch in batches] == [5, 5, 2]
    assert len({sample for batch in batches for sample in batch.sample_ids}) == 12


def test_every_epoch_has_every_row_once_with_live_world_micro_batches_too(
    plan: Plan, clips: list[Clip], tmp_path: Path
) -> None:
    np.save(tmp_path / "seen.npy", np.zeros((2, 100, 96, 96, 3), np.uint8))
    mixed = replace(
        plan,
        recipe=replace(plan.recipe, steps=8),
        clips=(clips[0].path.parent,),
        clip_frames=tmp_path / "seen.npy",
    )
    batches = [MicroBatchSource(mixed).micro_batch(number) for number in range(8)]
    assert sum(batch.sample_ids[0].startswith("world-") for batch in batches) == 2
    rows = [s for batch in batches for s in batch.sample_ids if not s.startswith("world-")]
    assert len(rows) == 30
    assert len(set(rows[:12])) == len(set(rows[12:24])) == 12


def test_equal_plans_share_one_source(plan: Plan) -> None:
    assert cached_source(plan) is cached_source(replace(plan))
