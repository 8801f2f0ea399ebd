"""A folder that serves, of a checkpoint of a run."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from torch.distributed.checkpoint import state_dict_saver

from model.checkpoint.folder import load_model
from tests.random_folder import make_random_folder
from training.make_folder import main


def run_with_checkpoints(work: Path, *steps: int) -> Path:
    """A run whose adapter has learnt: its bias is the step in each checkpoint."""
    start = make_random_folder(work / "start")
    (work / "run").mkdir()
    (work / "run" / "recipe.json").write_text(json.dumps({"start": str(start)}))
    bias = load_model(start).adapter[0].bias
    assert isinstance(bias, torch.Tensor)
    for step in steps:
        folder = work / "run" / "checkpoints" / f"step-{step:08d}"
        state = {"model": {"adapter.0.bias": torch.full_like(bias, step, dtype=torch.float32)}}
        state_dict_saver.save(state, checkpoint_id=str(folder), no_dist=True)
    return work


def made(monkeypatch: pytest.MonkeyPatch, *words: str) -> None:
    monkeypatch.setattr(sys, "argv", ["make_folder.py", *words])
    main()


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_the_newest_checkpoint_or_a_given_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = run_with_checkpoints(tmp_path, 4, 12)
    made(monkeypatch, str(run), "--out", str(tmp_path / "newest"))
    made(monkeypatch, str(run), "--out", str(tmp_path / "fourth"), "--step", "4")
    assert "1 tensors of step-00000012, the others of" in capsys.readouterr().out
    start = dict(load_model(tmp_path / "start").named_parameters())
    for folder, step in (("newest", 12.0), ("fourth", 4.0)):
        for name, parameter in load_model(tmp_path / folder).named_parameters():
            wanted = torch.full_like(parameter, step) if name == "adapter.0.bias" else start[name]
            assert torch.equal(parameter, wanted)
    for words, message in (
        (["--out", str(tmp_path / "newest")], "newest has a model already"),
        (["--out", str(tmp_path / "x"), "--step", "5"], "--step: got 5, wanted one of 4, 12"),
    ):
        with pytest.raises(SystemExit) as end:
            made(monkeypatch, str(run), *words)
        assert end.value.code == 1
        assert message in capsys.readouterr().err


def test_a_run_without_a_checkpoint(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        made(monkeypatch, str(tmp_path), "--out", str(tmp_path / "x"))
    assert "has no checkpoint" in capsys.readouterr().err
