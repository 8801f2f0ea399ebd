"""The parts that any trainer shares."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import nn

from training.monitoring.run_log import RunLog
from training.optimise.learning_rate import learning_rate, set_learning_rate
from training.optimise.optimizers import adamw


def test_matrices_decay_and_vectors_do_not_and_frozen_ones_stay_out() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2))
    model[2].weight.requires_grad_(False)
    decaying, others = adamw(model.named_parameters(), 1e-3, 0.05).param_groups
    assert [p.shape for p in decaying["params"]] == [(4, 3)]
    assert [p.ndim for p in others["params"]] == [1, 1, 1, 1]
    assert (decaying["weight_decay"], others["weight_decay"]) == (0.05, 0.0)


def test_the_rate_warms_up_and_comes_down() -> None:
    rates = [learning_rate(done / 1000, 1e-3) for done in range(1001)]
    assert rates[0] < 1e-4
    assert max(rates) == rates[20] == pytest.approx(1e-3)
    assert all(a < b for a, b in pairwise(rates[:21]))
    assert all(a > b for a, b in pairwise(rates[20:]))
    assert rates[-1] == learning_rate(1.7, 1e-3) == pytest.approx(2e-5)


def test_all_groups_get_the_rate() -> None:
    optimizer = adamw(nn.Linear(2, 2).named_parameters(), 1e-3, 0.1)
    set_learning_rate(optimizer, 5e-4)
    assert [group["lr"] for group in optimizer.param_groups] == [5e-4, 5e-4]
    assert isinstance(optimizer, torch.optim.AdamW)


def test_the_log_is_kept_and_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = RunLog(tmp_path / "run")
    log.report(50, loss=1.23456789)
    RunLog(tmp_path / "run").report(100, loss=1.0)  # started again: the log goes on
    rows = [json.loads(line) for line in log.path.read_text().splitlines()]
    assert [(r["step"], r["loss"]) for r in rows] == [(50, 1.234568), (100, 1.0)]
    assert all(r["elapsed_s"] >= 0 for r in rows)
    assert "loss 1.235" in capsys.readouterr().err
