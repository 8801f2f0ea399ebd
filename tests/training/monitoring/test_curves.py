"""The curves of a run, from its log."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from PIL import Image

from training.monitoring.curves import main, names_of, read_log
from training.monitoring.run_log import RunLog


def make_log(folder: Path) -> Path:
    log = RunLog(folder)
    log.report(50, loss=4.1, right=0.3, done=0.1)
    log.report(100, loss=2.0, right=0.5, done=0.2)
    log.report(150, loss=1.5, right=0.6, done=0.3)
    log.report(100, loss=1.9, right=0.55, done=0.2)  # killed, and continued from its checkpoint at step 50
    return folder


def test_steps_after_a_restart_replace_those_before_it(tmp_path: Path) -> None:
    rows = read_log(make_log(tmp_path))
    assert [(r["step"], r["loss"]) for r in rows] == [(50, 4.1), (100, 1.9)]


def test_losses_and_shares_are_separated(tmp_path: Path) -> None:
    assert names_of(read_log(make_log(tmp_path))) == (["loss"], ["right"])


def test_the_command_writes_a_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "curve.png"
    monkeypatch.setattr(sys, "argv", ["curves.py", str(make_log(tmp_path)), str(out)])
    main()
    with Image.open(out) as image:
        assert image.format == "PNG"
        assert image.width > 600
        assert len(image.convert("RGB").getcolors(1_000_000) or []) > 10


def test_a_folder_without_a_log_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["curves.py", str(tmp_path), str(tmp_path / "curve.png")])
    with pytest.raises(SystemExit):
        main()
    assert "is not a run folder: it has no log.jsonl" in capsys.readouterr().err
    (tmp_path / "log.jsonl").touch()
    with pytest.raises(ValueError, match="has no report yet"):
        read_log(tmp_path)
