"""Steps by several processes, sharded: the curve of one, a share of its memory, and checkpoints for any number."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from model.checkpoint.folder import load_model
from tests.random_folder import make_random_folder
from tests.training.worker_pool import WorkerPool
from training.data.row_micro_batches import write_row_table
from training.live_world.clips import Clip
from training.live_world.smoke_clips import question_rows
from training.run.plan import Plan
from training.run.recipe import smoke

pytestmark = pytest.mark.slow

TOLERANCE = 2e-4  # relative, of each step's loss: sums are taken in another order


@pytest.fixture(scope="module")
def plan(clips: list[Clip], tmp_path_factory: pytest.TempPathFactory) -> Plan:
    """Six steps of three parts, on dense rows: with two workers one of them has a part less in every second step."""
    work = tmp_path_factory.mktemp("plan")
    start = make_random_folder(work / "start")
    num_rows = write_row_table(work / "rows.arrow", question_rows(clips[0].path.parent))
    recipe = replace(smoke(), steps=6, global_batch=6, micro_batch=2, peak_lr=1e-3)
    return Plan(
        recipe=recipe, start=start, out=work / "out", table=work / "rows.arrow", num_rows=num_rows,
        frame_cache=work / "cache",
    )  # fmt: skip


@pytest.fixture(scope="module")
def gang() -> Iterator[WorkerPool]:
    with WorkerPool(2) as gang:
        yield gang


@pytest.fixture(scope="module")
def alone(
    gang: WorkerPool, plan: Plan, tmp_path_factory: pytest.TempPathFactory
) -> tuple[list[float], Path, dict[str, int]]:
    """The run of one worker: its curve, its folder, and what it holds."""
    work = tmp_path_factory.mktemp("alone")
    told = gang.train(plan, 1, work, save=work / "saved")[0]
    return [step["loss"] for step in told["steps"]], work / "saved" / "folder", told["held"]


def test_a_few_steps_lower_the_loss(alone: tuple[list[float], Path, dict[str, int]]) -> None:
    losses = alone[0]
    assert losses[-1] < 0.8 * losses[0]


def test_two_workers_have_the_curve_of_one_and_hold_half(
    gang: WorkerPool, plan: Plan, alone: tuple[list[float], Path, dict[str, int]], tmp_path: Path
) -> None:
    told = gang.train(plan, 2, tmp_path, save=tmp_path / "saved")
    assert told[0]["steps"][0].keys() == told[1]["steps"][0].keys()
    for one, other, wanted in zip(told[0]["steps"], told[1]["steps"], alone[0], strict=True):
        assert one["loss"] == other["loss"]
        assert one["loss"] == pytest.approx(wanted, rel=TOLERANCE)
        assert one["samples"] == 6
    for kind, whole in alone[2].items():
        halves = [worker["held"][kind] for worker in told]
        assert max(halves) <= 0.52 * whole, kind
        assert sum(halves) >= whole
    trained, wanted_model = load_model(tmp_path / "saved" / "folder"), load_model(alone[1])
    for (name, one), other in zip(trained.named_parameters(), wanted_model.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=2e-3, msg=name)


def test_products_in_bfloat16_give_nearly_the_curve_of_float32(
    gang: WorkerPool, plan: Plan, alone: tuple[list[float], Path, dict[str, int]], tmp_path: Path
) -> None:
    told = gang.train(replace(plan, recipe=replace(plan.recipe, autocast=True)), 1, tmp_path)[0]
    losses = [step["loss"] for step in told["steps"]]
    assert losses != alone[0]
    assert losses == pytest.approx(alone[0], rel=0.02)
    assert told["held"] == alone[2]  # weights and moments stay float32


def test_a_checkpoint_of_two_goes_on_with_one_worker_as_if_nothing_had_been(
    gang: WorkerPool, plan: Plan, alone: tuple[list[float], Path, dict[str, int]], tmp_path: Path
) -> None:
    gang.train(plan, 2, tmp_path / "two", last=3, save=tmp_path / "saved")
    later = gang.train(plan, 1, tmp_path / "one", first=3, load=tmp_path / "saved")[0]
    assert [step["loss"] for step in later["steps"]] == pytest.approx(alone[0][3:], rel=TOLERANCE)


def test_activation_checkpointing_changes_nothing(
    gang: WorkerPool, plan: Plan, alone: tuple[list[float], Path, dict[str, int]], tmp_path: Path
) -> None:
    again = replace(plan, recipe=replace(plan.recipe, checkpoint_activations=True))
    told = gang.train(again, 1, tmp_path, last=2)[0]
    assert [step["loss"] for step in told["steps"]] == pytest.approx(alone[0][:2], rel=1e-6)


def test_what_does_not_learn_stays_as_it_was(gang: WorkerPool, plan: Plan, tmp_path: Path) -> None:
    stage = replace(plan, recipe=replace(plan.recipe, trainable=("adapter", "gates")))
    gang.train(stage, 2, tmp_path, last=2, save=tmp_path / "saved")
    before = dict(load_model(plan.start).named_parameters())
    after = dict(load_model(tmp_path / "saved" / "folder").named_parameters())
    changed = {name for name, parameter in after.items() if not torch.equal(parameter, before[name])}
    gates = ("gate_cross", "gate_visual")
    assert changed == {n for n in before if n.startswith("adapter.") or n.endswith(gates)}


def test_two_workers_turn_matrices_as_one_does(gang: WorkerPool, plan: Plan, tmp_path: Path) -> None:
    """Muon needs whole matrices; it turns them in bfloat16, so sums in another order tell a little more.

    FlexAttention, which cannot go back on a CPU, is passed over there.
    """
    recipe = replace(plan.recipe, steps=4, peak_muon_lr=3e-3, weight_decay=0.05, flex=True)
    by_muon = replace(plan, recipe=recipe)
    one = gang.train(by_muon, 1, tmp_path / "one", save=tmp_path / "saved-one")[0]
    two = gang.train(by_muon, 2, tmp_path / "two", last=2, save=tmp_path / "saved-two")
    more = gang.train(by_muon, 2, tmp_path / "more", first=2, load=tmp_path / "saved-two")
    losses = [step["loss"] for step in (*two[0]["steps"], *more[0]["steps"])]
    assert losses == pytest.approx([step["loss"] for step in one["steps"]], rel=5e-3)
    held = [sum(worker["held"].values()) for worker in two]
    assert max(held) < 0.52 * sum(one["held"].values())
