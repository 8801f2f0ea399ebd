"""What a run needs, from the shapes of its model."""

from __future__ import annotations

import sys

import pytest

from training.estimate import main


def estimated(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: str) -> str:
    monkeypatch.setattr(sys, "argv", ["estimate.py", *words])
    main()
    return capsys.readouterr().out


def test_the_papers_largest_stage_fits_eight_gpus(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = estimated(monkeypatch, capsys, "--recipe", "sft", "--model", "7b", "--set", "micro_batch=8")
    lines: dict[str, float] = {}
    for line in text.splitlines():
        size, of, name = line.strip().partition(" GB  ")
        if of:
            lines[name] = float(size)
    together = next(size for name, size in lines.items() if name.startswith("together"))
    assert 40 < together < 60
    assert lines["weights (float32, a shard)"] == pytest.approx(4 * 9.8 / 8, rel=0.1)
    assert "3,777 steps of 768 samples" in text


def test_frozen_weights_have_no_gradients(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = estimated(monkeypatch, capsys, "--recipe", "pretrain_stage1", "--model", "7b")
    assert "    0.01 GB  gradients (float32, a shard)" in text
    assert "5,000 steps of 512 samples" in text


def test_a_model_that_is_none(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        estimated(monkeypatch, capsys, "--recipe", "sft", "--model", "8b")
    assert end.value.code == 2
    assert "wanted one of tiny, 7b, 14b" in capsys.readouterr().err
