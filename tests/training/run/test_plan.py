"""The length of a run and the micro-batches of its source."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.random_folder import make_random_folder
from training.data.row_micro_batches import write_row_table
from training.live_world.clips import Clip
from training.live_world.smoke_clips import question_rows
from training.run.micro_batch_source import MicroBatchSource, cached_source
from training.run.plan import Plan
from training.run.recipe import smoke
from training.run.train_loop import is_out_of_memory


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


def test_a_step_has_the_same_samples_with_any_number_of_workers(plan: Plan) -> None:
    six = replace(plan, recipe=replace(plan.recipe, global_batch=6, micro_batch=2))
    source, steps = MicroBatchSource(six), list[set[str]]()
    for num_workers, per_step in ((1, 3), (2, 4), (3, 3), (4, 4), (8, 8)):
        assert six.micro_batches_per_step(num_workers) == per_step
        batches = [source.micro_batch(per_step + part, num_workers) for part in range(per_step)]
        steps.append({sample for batch in batches for sample in batch.sample_ids})
        assert sum(len(batch.sample_ids) for batch in batches) == 6
    assert all(step == steps[0] for step in steps)


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


def test_a_micro_batch_that_needs_too_much_memory_is_halved(plan: Plan, tmp_path: Path) -> None:
    large = replace(plan, out=tmp_path, recipe=replace(plan.recipe, global_batch=12, micro_batch=6))
    large.run_folder.mkdir()
    assert large.after_out_of_memory() is large
    assert large.halve_micro_batch() == large.halve_micro_batch() == 3  # as by two workers at once
    smaller = large.after_out_of_memory()
    assert (smaller.recipe.micro_batch, smaller.micro_batches_per_step(1)) == (3, 4)
    with pytest.raises(ValueError, match="out of memory with micro_batch 3, which cannot be halved"):
        smaller.halve_micro_batch()
    with pytest.raises(ValueError, match="on which live-world questions depend"):
        replace(large, clips=(tmp_path,)).halve_micro_batch()
    assert (
        replace(large, recipe=replace(large.recipe, micro_batch=2)).after_out_of_memory().recipe.micro_batch
        == 2
    )


def test_a_real_lack_of_memory_is_recognised() -> None:
    with pytest.raises(RuntimeError) as lack:
        torch.empty(2**58)
    assert is_out_of_memory(lack.value)
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
