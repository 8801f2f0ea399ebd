"""The job that was submitted: it ends with a folder that tells how it was made, and has seen every row."""

from __future__ import annotations

import json

import numpy as np
import pytest

from model.checkpoint.folder import load_model
from model.checkpoint.tokenizer import load_tokenizer
from tests.runs.submitted_job import NUM_ROWS, SETTINGS, STEPS, SubmittedJob
from training.run import launch
from training.run.recipe import SFT_RECIPES

pytestmark = pytest.mark.timeout(1800)


def test_the_jobs_entrypoint_trains_a_folder(undisturbed: SubmittedJob) -> None:
    assert "succeeded" in undisturbed.said
    assert f"trained: {undisturbed.out}" in undisturbed.said
    assert "adapter" in undisturbed.said
    assert load_model(undisturbed.out).config.vocab_size == len(load_tokenizer(undisturbed.out))
    curve = undisturbed.curve()
    assert sorted(curve) == list(range(1, STEPS + 1))
    assert np.mean([curve[s] for s in range(STEPS - 2, STEPS + 1)]) < np.mean([curve[s] for s in range(1, 4)])


def test_the_folder_tells_how_it_was_made(undisturbed: SubmittedJob) -> None:
    run = undisturbed.out / "run"
    made = json.loads((run / "recipe.json").read_text())
    assert made["recipe"]["name"] == "smoke"
    assert len(made["revision"].rstrip("+")) == 40
    assert (run / "curve.png").read_bytes().startswith(b"\x89PNG")
    assert list((run / "tensorboard").glob("events*"))
    told = undisturbed.log()[0].keys()
    assert {"tokens_s", "frames_s", "mfu", "data_wait", "memory_gb", "lr", "left_s"} <= told


def test_no_sample_is_skipped_or_seen_twice(undisturbed: SubmittedJob) -> None:
    samples = undisturbed.samples()
    assert all(len(seen) == 6 for seen in samples.values())
    assert sorted(samples) == list(range(STEPS))
    first, second = (
        [s for step in epoch for s in samples[step]]
        for epoch in (range(STEPS // 2), range(STEPS // 2, STEPS))
    )
    assert len(first) == len(second) == NUM_ROWS
    assert set(first) == set(second)
    assert len(set(first)) == NUM_ROWS


def test_a_run_goes_on_only_with_the_recipe_that_it_was_begun_with(
    undisturbed: SubmittedJob, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    same = ["sft.py", "--recipe", "smoke", "--out", str(undisturbed.out), "--set", *SETTINGS]
    monkeypatch.setattr("sys.argv", [*same, "peak_lr=0.5"])
    with pytest.raises(SystemExit):
        launch.main(SFT_RECIPES, "")
    assert "was begun with another recipe (peak_lr)" in capsys.readouterr().err
    monkeypatch.setattr("sys.argv", same)
    with pytest.raises(SystemExit) as end:
        launch.main(SFT_RECIPES, "")
    assert end.value.code == 0
    assert "is finished" in capsys.readouterr().err
