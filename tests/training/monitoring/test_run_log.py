"""The log of a run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from training.monitoring.run_log import RunLog


def test_reports_are_written_and_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = RunLog(tmp_path / "run")
    log.report(50, loss=1.23456789)
    RunLog(tmp_path / "run").report(100, loss=1.0)  # a restarted run appends to the same log
    rows = [json.loads(line) for line in log.path.read_text().splitlines()]
    assert [(r["step"], r["loss"]) for r in rows] == [(50, 1.234568), (100, 1.0)]
    assert all(r["elapsed_s"] >= 0 for r in rows)
    assert "loss 1.235" in capsys.readouterr().err
