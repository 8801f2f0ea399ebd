"""The submitted job: its model, the record of the run, and the samples that it has seen."""

from __future__ import annotations

import json

import numpy as np
import pytest

from model.checkpoint.folder import load_model
from model.checkpoint.tokenizer import load_tokenizer
from tests.runs.submitted_job import NUM_ROWS, SETTINGS, STEPS, SubmittedJob
from training.sft import main

pytestmark = pytest.mark.timeout(1800)


def test_the_entrypoint_of_the_job_trains_a_model(submitted_job: SubmittedJob) -> None:
    assert "succeeded" in submitted_job.output
    assert f"trained: {submitted_job.out}" in submitted_job.output
    assert "adapter" in submitted_job.output
    assert load_model(submitted_job.out).config.vocab_size == len(load_tokenizer(submitted_job.out))
    curve = submitted_job.curve()
    assert sorted(curve) == list(range(1, STEPS + 1))
    assert np.mean([curve[s] for s in range(STEPS - 2, STEPS + 1)]) < np.mean([curve[s] for s in range(1, 4)])


def test_the_folder_has_a_record_of_the_run(submitted_job: SubmittedJob) -> None:
    run = submitted_job.out / "run"
    recipe = json.loads((run / "recipe.json").read_text())
    assert recipe["recipe"]["name"] == "smoke"
    assert len(recipe["revision"].rstrip("+")) == 40
    assert (run / "curve.png").read_bytes().startswith(b"\x89PNG")
    assert list((run / "tensorboard").glob("events*"))
    names = submitted_job.log()[0].keys()
    assert {"tokens_s", "frames_s", "mfu", "data_wait", "memory_gb", "lr", "left_s", "skipped"} <= names
    validated = {row["step"]: row["validation"] for row in submitted_job.log() if "validation" in row}
    assert sorted(validated) == [4, 8, 10]
    assert all(0 < row["validation_right"] < 1 for row in submitted_job.log() if "validation" in row)


def test_no_sample_is_skipped_or_seen_twice(submitted_job: SubmittedJob) -> None:
    samples = submitted_job.samples()
    assert all(len(seen) == 6 for seen in samples.values())
    assert sorted(samples) == list(range(STEPS))
    first, second = (
        [s for step in epoch for s in samples[step]]
        for epoch in (range(STEPS // 2), range(STEPS // 2, STEPS))
    )
    assert len(first) == len(second) == NUM_ROWS
    assert set(first) == set(second)
    assert len(set(first)) == NUM_ROWS


def test_a_run_continues_only_with_the_same_recipe(
    submitted_job: SubmittedJob, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    same = ["sft.py", "--recipe", "smoke", "--out", str(submitted_job.out), "--set", *SETTINGS]
    monkeypatch.setattr("sys.argv", [*same, "peak_lr=0.5"])
    with pytest.raises(SystemExit):
        main()
    assert "has a run with another recipe (peak_lr)" in capsys.readouterr().err
    monkeypatch.setattr("sys.argv", same)
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 0
    assert "is finished" in capsys.readouterr().err
