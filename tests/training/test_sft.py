"""The trainer: it learns, it goes on after a kill, it refuses held-out clips, and the services load what it makes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerFast

from model.config import preset
from model.folder import load_model, load_tokenizer
from model.vision import VisionTower
from training import sft
from training.clips import Clip
from training.sft import Recipe, Steps, Trainer, make_model

RECIPE = Recipe(
    steps=12,
    picture_steps=6,
    one_picture_steps=3,
    clips_per_step=2,
    rows_per_clip=3,
    report_every=1,
    save_every=5,
)
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def vision(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An encoder that was taught nothing."""
    torch.manual_seed(3)
    path = tmp_path_factory.mktemp("vision") / "vision.safetensors"
    save_file(VisionTower(preset("tiny").vision).state_dict(), path)
    return path


@pytest.fixture(scope="module")
def features(clips: list[Clip]) -> np.ndarray:
    """What an encoder could see: [clips, N, P, Dv]."""
    return np.random.default_rng(0).normal(size=(len(clips), 100, 9, 160)).astype(np.float32)


def make_trainer(
    clips: list[Clip],
    vision: Path,
    tokenizer: PreTrainedTokenizerFast,
    features: np.ndarray,
    work: Path,
    recipe: Recipe = RECIPE,
) -> Trainer:
    model = make_model(vision, tokenizer, recipe.seed)
    return Trainer(model, Steps(clips, tokenizer, model.config, recipe, 100), features, recipe, work)


def log_of(work: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (work / "log.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def whole(
    clips: list[Clip],
    vision: Path,
    tokenizer: PreTrainedTokenizerFast,
    features: np.ndarray,
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Trainer, Path]:
    """A run that nothing disturbed."""
    work = tmp_path_factory.mktemp("whole")
    trainer = make_trainer(clips, vision, tokenizer, features, work)
    trainer.run("cpu", 0)
    return trainer, work


def test_a_few_steps_lower_the_loss(whole: tuple[Trainer, Path]) -> None:
    rows = log_of(whole[1])
    assert [r["step"] for r in rows] == list(range(1, 13))
    assert rows[-1]["loss"] < 0.85 * rows[0]["loss"]


def test_the_vision_encoder_stays_as_it_was_taught(whole: tuple[Trainer, Path], vision: Path) -> None:
    taught = VisionTower(preset("tiny").vision)
    taught.load_state_dict(sft.load_file(vision))
    trained = dict(whole[0].model.vision.named_parameters())
    assert all(torch.equal(trained[name], p) for name, p in taught.named_parameters())


def test_a_run_that_was_stopped_goes_on_as_if_it_had_not_been(
    clips: list[Clip],
    vision: Path,
    tokenizer: PreTrainedTokenizerFast,
    features: np.ndarray,
    whole: tuple[Trainer, Path],
    tmp_path: Path,
) -> None:
    class Stop(RuntimeError):
        pass

    class Stopping(Steps):
        def step(self, number: int) -> sft.Step:
            if number == 7:
                raise Stop
            return super().step(number)

    first = make_trainer(clips, vision, tokenizer, features, tmp_path)
    first.steps = Stopping(clips, tokenizer, first.model.config, RECIPE, 100)
    with pytest.raises(Stop):
        first.run("cpu", 0)
    second = make_trainer(clips, vision, tokenizer, features, tmp_path)
    assert second.number == 5
    second.run("cpu", 0)
    losses = {r["step"]: r["loss"] for r in log_of(tmp_path)}
    assert losses == {r["step"]: r["loss"] for r in log_of(whole[1])}
    undisturbed = whole[0].model.state_dict()
    assert all(torch.equal(undisturbed[name], p) for name, p in second.model.state_dict().items())


def test_steps_are_the_same_for_the_same_seed_and_workers_share_them(
    clips: list[Clip], tokenizer: PreTrainedTokenizerFast
) -> None:
    steps = Steps(clips, tokenizer, preset("tiny", vocab_size=len(tokenizer)), RECIPE, 100)
    wanted = [steps.step(number) for number in range(4)]
    for num_workers in (0, 2):
        made = list(islice(DataLoader(steps, batch_size=None, num_workers=num_workers), 4))
        for one, other in zip(wanted, made, strict=True):
            np.testing.assert_array_equal(one.batch.token_ids, other.batch.token_ids)
            assert one.clips == other.clips
            np.testing.assert_array_equal(one.frames, other.frames)
    other = Steps(clips, tokenizer, steps.config, replace(RECIPE, seed=2), 100).step(0)
    assert other.batch.token_ids.shape != wanted[0].batch.token_ids.shape or not np.array_equal(
        other.batch.token_ids, wanted[0].batch.token_ids
    )


def test_killed_and_started_again_the_command_makes_a_folder(
    clips: list[Clip], vision: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "tiny"
    checkpoint = out / "run" / "checkpoint.pt"
    command = [
        "training/sft.py",
        "--clips",
        str(clips[0].path.parent),
        "--vision",
        str(vision),
        "--out",
        str(out),
    ]
    command += ["--workers", "0", "--save-every", "2"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    errors = (tmp_path / "errors").open("w+")
    with (
        errors,
        subprocess.Popen(
            [sys.executable, *command, "--steps", "1000"], cwd=ROOT, env=environment, stderr=errors
        ) as run,
    ):
        while not checkpoint.is_file():
            assert run.poll() is None, (tmp_path / "errors").read_text()
            os.sched_yield()
        run.send_signal(signal.SIGKILL)
    reached = torch.load(checkpoint, weights_only=True)["number"]
    assert reached >= 2
    monkeypatch.setattr(sys, "argv", [*command, "--steps", str(reached + 2)])
    sft.main()
    recipe = json.loads((out / "recipe.json").read_text())
    assert recipe["steps"] == recipe["recipe"]["steps"] == reached + 2
    model = load_model(out)
    assert model.config.vocab_size == len(load_tokenizer(out))
    trained = torch.load(checkpoint, weights_only=True)["model"]
    assert all(torch.equal(trained[name], p) for name, p in model.named_parameters())


def test_held_out_clips_are_refused(
    held_out: list[Clip],
    vision: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = str(held_out[0].path.parent)
    command = ["sft.py", "--clips", folder, "--vision", str(vision), "--out", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit):
        sft.main()
    assert "seeds from 1000000 on are held out for tests" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
