"""Steps of several processes: the loss of one process, a share of its memory, and portable checkpoints."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import PreTrainedTokenizerFast

from model.checkpoint.folder import load_model
from model.config import preset
from model.network.streamchat import StreamChat
from tests.random_folder import make_random_folder
from tests.training.worker_pool import WorkerPool
from training.data.micro_batch import MicroBatch, packed_micro_batch
from training.data.packing import Sample
from training.data.row_micro_batches import write_row_table
from training.data.row_tokenizer import RowTokenizer
from training.data.training_row import TrainingRow, Turn
from training.live_world.clips import Clip
from training.live_world.smoke_clips import question_rows
from training.optimise.objective import Objective
from training.optimise.optimizers import Optimizers
from training.run.plan import Plan
from training.run.recipe import smoke
from training.run.sharding import load_trained_weights
from training.run.train_step import StepRunner

pytestmark = pytest.mark.slow

TOLERANCE = 2e-4  # relative, of each step's loss: the order of the sums differs


@pytest.fixture(scope="module")
def plan(clips: list[Clip], tmp_path_factory: pytest.TempPathFactory) -> Plan:
    """Six steps of three micro-batches of dense rows. With two workers, one has fewer micro-batches in each step."""
    work = tmp_path_factory.mktemp("plan")
    initial_model = make_random_folder(work / "start")
    num_rows = write_row_table(work / "rows.arrow", question_rows(clips[0].path.parent))
    recipe = replace(smoke(), steps=6, global_batch=6, micro_batch=2, peak_lr=1e-3)
    return Plan(
        recipe=recipe, initial_model=initial_model, out=work / "out", row_table=work / "rows.arrow", num_rows=num_rows,
        frame_cache=work / "cache",
    )  # fmt: skip


@pytest.fixture(scope="module")
def pool() -> Iterator[WorkerPool]:
    with WorkerPool(2) as workers:
        yield workers


@pytest.fixture(scope="module")
def single_worker(
    pool: WorkerPool, plan: Plan, tmp_path_factory: pytest.TempPathFactory
) -> tuple[list[float], Path, dict[str, int]]:
    """A run with one worker: its losses, its folder, and its bytes of weights, gradients and moments."""
    work = tmp_path_factory.mktemp("single")
    report = pool.train(plan, 1, work, save=work / "saved")[0]
    return [step["loss"] for step in report["steps"]], work / "saved" / "folder", report["bytes"]


def test_a_few_steps_lower_the_loss(single_worker: tuple[list[float], Path, dict[str, int]]) -> None:
    losses = single_worker[0]
    assert losses[-1] < 0.8 * losses[0]


def test_two_workers_have_the_loss_of_one_and_half_of_its_memory_each(
    pool: WorkerPool, plan: Plan, single_worker: tuple[list[float], Path, dict[str, int]], tmp_path: Path
) -> None:
    reports = pool.train(plan, 2, tmp_path, save=tmp_path / "saved")
    assert reports[0]["steps"][0].keys() == reports[1]["steps"][0].keys()
    for one, other, wanted in zip(reports[0]["steps"], reports[1]["steps"], single_worker[0], strict=True):
        assert one["loss"] == other["loss"]
        assert one["loss"] == pytest.approx(wanted, rel=TOLERANCE)
        assert one["num_samples"] == 6
    for kind, whole in single_worker[2].items():
        halves = [worker["bytes"][kind] for worker in reports]
        assert max(halves) <= 0.52 * whole, kind
        assert sum(halves) >= whole
    trained, wanted_model = load_model(tmp_path / "saved" / "folder"), load_model(single_worker[1])
    for (name, one), other in zip(trained.named_parameters(), wanted_model.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=2e-3, msg=name)


def test_two_nodes_have_the_loss_of_one_worker_and_its_memory_each(
    pool: WorkerPool, plan: Plan, single_worker: tuple[list[float], Path, dict[str, int]], tmp_path: Path
) -> None:
    """Weights are sharded within a node, which has one worker here."""
    reports = pool.train(plan, 2, tmp_path, last=3, local_size=1)
    for worker in reports:
        losses = [step["loss"] for step in worker["steps"]]
        assert losses == pytest.approx(single_worker[0][:3], rel=TOLERANCE)
        assert worker["bytes"]["weights"] == single_worker[2]["weights"]


def test_autocast_gives_nearly_the_losses_of_float32(
    pool: WorkerPool, plan: Plan, single_worker: tuple[list[float], Path, dict[str, int]], tmp_path: Path
) -> None:
    reports = pool.train(replace(plan, recipe=replace(plan.recipe, autocast=True)), 1, tmp_path, last=3)[0]
    losses = [step["loss"] for step in reports["steps"]]
    assert losses != single_worker[0][:3]
    assert losses == pytest.approx(single_worker[0][:3], rel=0.02)
    assert reports["bytes"] == single_worker[2]  # weights and moments stay float32


def test_one_worker_with_another_micro_batch_continues_from_a_checkpoint_of_two(
    pool: WorkerPool, plan: Plan, single_worker: tuple[list[float], Path, dict[str, int]], tmp_path: Path
) -> None:
    pool.train(plan, 2, tmp_path / "two", last=3, save=tmp_path / "saved")
    whole = replace(plan, recipe=replace(plan.recipe, micro_batch=6))
    later = pool.train(whole, 1, tmp_path / "one", first=3, load=tmp_path / "saved")[0]
    assert [step["loss"] for step in later["steps"]] == pytest.approx(single_worker[0][3:], rel=TOLERANCE)


def test_activation_checkpointing_changes_nothing(
    pool: WorkerPool, plan: Plan, single_worker: tuple[list[float], Path, dict[str, int]], tmp_path: Path
) -> None:
    checkpointed = replace(plan, recipe=replace(plan.recipe, checkpoint_activations=True))
    reports = pool.train(checkpointed, 1, tmp_path, last=2)[0]
    assert [step["loss"] for step in reports["steps"]] == pytest.approx(single_worker[0][:2], rel=1e-6)


def test_frozen_weights_do_not_change(pool: WorkerPool, plan: Plan, tmp_path: Path) -> None:
    stage = replace(plan, recipe=replace(plan.recipe, trainable=("adapter", "gates")))
    pool.train(stage, 2, tmp_path, last=2, save=tmp_path / "saved")
    before = dict(load_model(plan.initial_model).named_parameters())
    rebuilt = load_model(plan.initial_model)
    num = load_trained_weights(tmp_path / "saved", rebuilt)
    after = dict(load_model(tmp_path / "saved" / "folder").named_parameters())
    changed = {name for name, parameter in after.items() if not torch.equal(parameter, before[name])}
    gates = ("gate_cross", "gate_visual")
    assert changed == {n for n in before if n.startswith("adapter.") or n.endswith(gates)}
    assert num == len(changed)  # a checkpoint has nothing of what is frozen
    assert all(torch.equal(parameter, after[name]) for name, parameter in rebuilt.named_parameters())
    with pytest.raises(ValueError, match="is no checkpoint"):
        load_trained_weights(tmp_path, rebuilt)


def test_sharded_muon_has_the_losses_of_muon(pool: WorkerPool, plan: Plan, tmp_path: Path) -> None:
    """Muon computes in bfloat16, so the order of the sums matters more and the tolerance is larger.

    The recipe sets `flex` too, to test that CPUs ignore it.
    """
    recipe = replace(plan.recipe, steps=3, peak_muon_lr=3e-3, weight_decay=0.05, flex=True)
    by_muon = replace(plan, recipe=recipe)
    one = pool.train(by_muon, 1, tmp_path / "one", save=tmp_path / "saved-one")[0]
    two = pool.train(by_muon, 2, tmp_path / "two", last=1, save=tmp_path / "saved-two")
    more = pool.train(by_muon, 2, tmp_path / "more", first=1, load=tmp_path / "saved-two")
    losses = [step["loss"] for step in (*two[0]["steps"], *more[0]["steps"])]
    assert losses == pytest.approx([step["loss"] for step in one["steps"]], rel=5e-3)
    held = [sum(worker["bytes"].values()) for worker in two]
    assert max(held) < 0.52 * sum(one["bytes"].values())


def text_batch(tokenizer: PreTrainedTokenizerFast) -> MicroBatch:
    turns = (Turn(instruction="What is happening?", answer="The red dog moves."),)
    row = TrainingRow(video="", turns=turns, kind="text", source="test")
    tokens = RowTokenizer(tokenizer, 16, 200).tokens(row, np.zeros(0))
    sample = Sample(tokens, np.zeros((0, 96, 96, 3), np.uint8))
    return packed_micro_batch(0, [sample], 200, 0, 96, sample_ids=["one"])


def weights_of(model: torch.nn.Module) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in model.parameters()]


@pytest.mark.usefixtures("one_process")
@pytest.mark.parametrize("wrong", [np.inf, np.nan])
def test_an_infinite_loss_changes_no_weight(tokenizer: PreTrainedTokenizerFast, wrong: float) -> None:
    torch.manual_seed(0)
    model = StreamChat(preset("tiny", vocab_size=len(tokenizer)))
    recipe = smoke()
    runner = StepRunner(Objective(model), Optimizers.of(model, recipe), recipe, torch.device("cpu"))
    good = text_batch(tokenizer)
    spoilt = replace(good.tokens, loss_weights=good.tokens.loss_weights.copy())
    spoilt.loss_weights[spoilt.loss_mask] = wrong
    before = weights_of(model)
    result = runner.step([good, replace(good, tokens=spoilt)], 0.5)
    assert result.skipped
    assert all(map(torch.equal, weights_of(model), before))
    assert all(parameter.grad is None for parameter in model.parameters())
    result = runner.step([good], 0.5)
    assert not result.skipped
    assert np.isfinite(result.loss)
    assert not all(map(torch.equal, weights_of(model), before))


@pytest.mark.usefixtures("one_process")
def test_an_infinite_gradient_of_a_finite_loss_changes_no_weight(tokenizer: PreTrainedTokenizerFast) -> None:
    torch.manual_seed(0)
    model = StreamChat(preset("tiny", vocab_size=len(tokenizer)))
    recipe = smoke()
    runner = StepRunner(Objective(model), Optimizers.of(model, recipe), recipe, torch.device("cpu"))
    before = weights_of(model)
    model.language.norm.weight.register_hook(lambda gradient: gradient * torch.inf)
    result = runner.step([text_batch(tokenizer)], 0.5)
    assert result.skipped
    assert np.isfinite(result.loss)
    assert all(map(torch.equal, weights_of(model), before))
