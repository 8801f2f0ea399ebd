"""The command on a real Ray with two workers: it ends with a folder, and no kill changes what it learns."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from model.folder import load_model, load_tokenizer
from tests.random_folder import make_random_folder
from tests.training.training_job import TrainingJob
from training import launch
from training.clips import Clip
from training.recipe import TUNING
from training.row import Row, Turn, write_rows
from training.smoke_clips import smoke_rows

TOLERANCE = 1e-3  # relative: sums are taken in another order, and steps build on each other
STEPS = 12
# Three parts a step, so that one of two workers has less to do in every step.
SETTINGS = ("--set", "global_batch=6", "micro_batch=2", "save_every=3", "peak_lr=1e-3")


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    """Of every run: the same rows, and a model that knows nothing: its curve is steep and tells every difference."""
    rows = smoke_rows(tmp_path_factory.mktemp("rows"))
    return "--rows", *rows, "--model", str(make_random_folder(tmp_path_factory.mktemp("start"))), *SETTINGS


@pytest.fixture(scope="module")
def undisturbed(options: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> TrainingJob:
    """A run that nothing disturbed."""
    job = TrainingJob(tmp_path_factory.mktemp("undisturbed") / "out", "--workers", "2", *options)
    assert job.finish() == 0, job.text()
    return job


def samples_of(job: TrainingJob) -> dict[int, set[str]]:
    """What each step has seen; a step that was made again must have seen the same."""
    seen: dict[int, dict[int, list[str]]] = {}
    for part in job.parts():
        of_step = seen.setdefault(part["step"], {})
        assert of_step.setdefault(part["part"], part["samples"]) == part["samples"]
    flat = {step: [s for samples in of_step.values() for s in samples] for step, of_step in seen.items()}
    assert all(len(set(samples)) == len(samples) == 6 for samples in flat.values())
    return {step: set(samples) for step, samples in flat.items()}


@pytest.mark.timeout(900)
def test_the_command_ends_with_a_folder_that_tells_how_it_was_made(undisturbed: TrainingJob) -> None:
    out = undisturbed.out
    assert load_model(out).config.vocab_size == len(load_tokenizer(out))
    curve = undisturbed.curve()
    assert sorted(curve) == list(range(1, STEPS + 1))
    assert np.mean([curve[s] for s in range(9, 13)]) < np.mean([curve[s] for s in range(1, 5)])
    made = json.loads((out / "run" / "recipe.json").read_text())
    assert made["recipe"]["name"] == "smoke"
    assert len(made["revision"].rstrip("+")) == 40
    assert (out / "run" / "curve.png").read_bytes().startswith(b"\x89PNG")
    assert list((out / "run" / "tensorboard").glob("events*"))
    assert {"tokens_s", "frames_s", "mfu", "data_wait", "memory_gb", "lr", "left_s"} <= undisturbed.log()[
        0
    ].keys()
    assert f"trained: {out}" in undisturbed.text()
    assert "adapter" in undisturbed.text()


@pytest.mark.timeout(900)
def test_no_sample_is_skipped_or_seen_twice(undisturbed: TrainingJob) -> None:
    seen = samples_of(undisturbed)
    epochs = [s for step in sorted(seen) for s in sorted(seen[step])]
    assert len(epochs) == 6 * STEPS
    assert len(set(epochs[:48])) == 48  # the clips have 48 questions: one epoch


@pytest.mark.timeout(900)
def test_killed_workers_and_a_killed_job_leave_no_trace_in_the_curve(
    undisturbed: TrainingJob, options: tuple[str, ...], tmp_path: Path
) -> None:
    first, second = sorted(
        int(s) for s in np.random.default_rng().choice(range(3, 11), size=2, replace=False)
    )
    job = TrainingJob(tmp_path / "out", "--workers", "2", *options)
    job.wait_for_step(first)
    job.kill_a_worker()
    job.wait_for_step(max(second, first + 1))
    job.kill_everything()
    job = TrainingJob(tmp_path / "out", "--workers", "1", *options)  # one has the curve of two
    assert job.finish() == 0, job.text()
    assert "going on from step" in job.text()
    steps = [row["step"] for row in job.log()]
    assert len(steps) > len(set(steps)) or second in (3, 6, 9), "nothing was made again"
    assert samples_of(job) == samples_of(undisturbed)
    curve, wanted = job.curve(), undisturbed.curve()
    assert sorted(curve) == sorted(wanted)
    for step, loss in curve.items():
        assert loss == pytest.approx(wanted[step], rel=TOLERANCE), f"killed at {first} and {second}"


@pytest.mark.timeout(900)
def test_too_many_bad_videos_stop_the_run_and_are_named(clips: list[Clip], tmp_path: Path) -> None:
    (tmp_path / "empty.mp4").touch()
    turn = Turn(start_s=2, end_s=4, instruction="What?", answer="A dog.")
    videos = [clips[0].path, clips[1].path, tmp_path / "empty.mp4", tmp_path / "absent.mp4"] * 3
    turns = [Turn(start_s=2, end_s=4 + i / 10, instruction="What?", answer="A dog.") for i in range(12)]
    rows = [
        Row(video=str(v), turns=(t,), kind="dense", source="t") for v, t in zip(videos, turns, strict=True)
    ]
    write_rows(str(tmp_path / "rows.jsonl"), [*rows, Row(video="", turns=(turn,), kind="text", source="t")])
    job = TrainingJob(
        tmp_path / "out",
        "--rows",
        str(tmp_path / "rows.jsonl"),
        "--set",
        "steps=2",
        "global_batch=12",
        "micro_batch=6",
    )
    assert job.finish() == 1
    assert "rows are bad, more than max_bad_share 5.0%" in job.text()
    assert "missing file" in job.text()
    assert str(tmp_path / "absent.mp4") in job.text()
    assert not (tmp_path / "out" / "config.json").exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--recipe", "sft"], "nothing to train on: give --rows or --clips"),
        (["--recipe", "smoke", "--workers", "two"], "--workers: got 'two', wanted a number such as 2"),
        (["--recipe", "smoke", "--workers", "3:1"], "--workers: got '3:1'"),
        (["--recipe", "smoke", "--set", "stepz=1"], "wanted key=value with one of"),
        (["--recipe", "sft", "--rows", "absent.parquet"], "--model: give a StreamChat folder"),
        (["--recipe", "smoke", "--rows", "absent.parquet"], "absent.parquet"),
        (["--recipe", "smoke", "--model", "nowhere"], "nowhere is no StreamChat folder"),
        (["--recipe", "smoke", "--set", "trainable=adaptor"], "trainable: got adaptor"),
    ],
)
def test_mistakes_are_told_before_anything_starts(
    options: list[str],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "argv", ["sft.py", *options, "--out", str(tmp_path / "out")])
    with pytest.raises(SystemExit) as end:
        launch.main(TUNING, "")
    assert end.value.code == 2
    assert said in capsys.readouterr().err


def test_held_out_clips_are_refused(
    held_out: list[Clip], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--recipe", "live_world", "--model", "new-tiny", "--clips", str(held_out[0].path.parent)]
    monkeypatch.setattr(sys, "argv", ["sft.py", *options, "--out", str(tmp_path / "out")])
    with pytest.raises(SystemExit):
        launch.main(TUNING, "")
    assert "seeds from 1000000 on are held out for tests" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_run_goes_on_only_with_the_recipe_that_it_was_begun_with(
    undisturbed: TrainingJob, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(undisturbed.out)
    same = [
        "sft.py",
        "--recipe",
        "smoke",
        "--out",
        out,
        "--set",
        "global_batch=6",
        "micro_batch=2",
        "save_every=3",
    ]
    monkeypatch.setattr(sys, "argv", [*same, "peak_lr=0.5"])
    with pytest.raises(SystemExit):
        launch.main(TUNING, "")
    assert "was begun with another recipe (peak_lr)" in capsys.readouterr().err
    monkeypatch.setattr(sys, "argv", [*same, "peak_lr=1e-3"])
    with pytest.raises(SystemExit) as end:
        launch.main(TUNING, "")
    assert end.value.code == 0
    assert "is finished" in capsys.readouterr().err
