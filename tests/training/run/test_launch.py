"""Mistakes in the options, and runs with too many bad videos. Tests of whole runs are in tests/runs."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.runs.training_job import TrainingJob
from training.data.row_files import write_rows
from training.data.training_row import TrainingRow, Turn
from training.live_world.clips import Clip
from training.run.launch import uses_gpus
from training.sft import main


@pytest.mark.timeout(900)
def test_too_many_bad_videos_stop_the_run_with_a_message(clips: list[Clip], tmp_path: Path) -> None:
    (tmp_path / "empty.mp4").touch()
    turn = Turn(start_s=2, end_s=4, instruction="What?", answer="A dog.")
    videos = [clips[0].path, clips[1].path, tmp_path / "empty.mp4", tmp_path / "absent.mp4"] * 3
    turns = [Turn(start_s=2, end_s=4 + i / 10, instruction="What?", answer="A dog.") for i in range(12)]
    rows = [
        TrainingRow(video=str(v), turns=(t,), kind="dense", source="t")
        for v, t in zip(videos, turns, strict=True)
    ]
    write_rows(
        str(tmp_path / "rows.jsonl"), [*rows, TrainingRow(video="", turns=(turn,), kind="text", source="t")]
    )
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
    ("options", "message"),
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
def test_mistakes_end_the_program_before_it_starts_ray(
    options: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "argv", ["sft.py", *options, "--out", str(tmp_path / "out")])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("device", "num_gpus", "on_gpus"),
    [("auto", 0, False), ("auto", 4, True), ("auto", 8, True), ("cpu", 8, False), ("cuda", 0, True)],
)
def test_the_device_of_a_run(device: str, num_gpus: int, on_gpus: bool) -> None:
    assert uses_gpus(device, 4, num_gpus) is on_gpus


def test_fewer_gpus_than_workers_are_refused() -> None:
    with pytest.raises(ValueError, match=r"--workers: got 8, but the cluster has 2 GPUs: give --workers 2"):
        uses_gpus("auto", 8, 2)


def test_held_out_clips_are_refused(
    held_out: list[Clip], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--recipe", "live_world", "--model", "new-tiny", "--clips", str(held_out[0].path.parent)]
    monkeypatch.setattr(sys, "argv", ["sft.py", *options, "--out", str(tmp_path / "out")])
    with pytest.raises(SystemExit):
        main()
    assert "seeds from 1000000 on are held out for tests" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
