"""The benchmark of training runs from its command line, in the smallest size, and finds what FSDP2 promises."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from tests.bench import bench_training


def test_each_of_two_workers_holds_half(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--quick", "--workers", "1,2", "--threads", "1", "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["bench_training.py", *options])
    bench_training.main()
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert json.loads((tmp_path / "bench_training.json").read_text()) == result
    assert (tmp_path / "bench_training.png").read_bytes().startswith(b"\x89PNG")
    alone, half = result["rows"]
    assert (alone["workers"], half["workers"]) == (1, 2)
    assert half["held_share"] == pytest.approx(0.5, abs=0.02)
    assert min(alone["step_s"], half["step_s"]) > 0
