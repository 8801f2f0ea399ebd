"""The command that makes rows of a data set."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from model.config import PROJECT_ROOT
from training.data.bad_row import BadRowCounter
from training.data.make_rows import main
from training.data.readers.registry import READERS
from training.data.row_files import read_rows
from training.data.training_row import TrainingRow
from training.live_world.clips import Clip


def run(monkeypatch: pytest.MonkeyPatch, *words: str) -> None:
    monkeypatch.setattr(sys, "argv", ["make_rows.py", *words])
    main()


def rows_in(path: Path) -> list[TrainingRow]:
    return list(read_rows([str(path)], BadRowCounter()))


def captions(*times: tuple[float, float]) -> list[dict[str, Any]]:
    return [{"start_s": a, "end_s": b, "caption": f"A dog at {a}."} for a, b in times]


def written(folder: Path, clips: dict[str, Any]) -> str:
    path = folder / "captions.json"
    path.write_text(json.dumps({name: {"captions": captions} for name, captions in clips.items()}))
    return str(path)


def test_the_live_worlds_captions_become_rows(clips: list[Clip], tmp_path: Path) -> None:
    folder, out = clips[0].path.parent, tmp_path / "rows.parquet"
    command = [sys.executable, "training/data/make_rows.py", "live_world", str(folder / "captions.json")]
    command += ["--videos", str(folder), "--check", "--out", str(out)]
    done = subprocess.run(command, cwd=PROJECT_ROOT, capture_output=True, text=True, check=True)
    written_captions = json.loads((folder / "captions.json").read_text())
    rows = rows_in(out)
    assert [row.video for row in rows] == [str(clip.path) for clip in clips]
    assert [len(row.turns) for row in rows] == [len(clip["captions"]) for clip in written_captions.values()]
    assert json.loads(done.stdout)["rows"] == len(rows)


def test_long_videos_stay_whole_and_missing_or_empty_files_are_skipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.webm").write_bytes(b"video")
    (tmp_path / "b.webm").touch()
    video = captions((0.0, 5.0), (50.0, 60.0), (61.0, 140.0))
    path = written(tmp_path, {"a.mp4": video, "b.mp4": video, "c.mp4": video})
    out = tmp_path / "rows.jsonl"
    words = ["--videos", str(tmp_path), "--suffix", ".webm", "--check", "--max-bad-share", "0.5"]
    run(monkeypatch, "live_world", path, "--out", str(out), *words)
    rows = rows_in(out)
    assert [[turn.end_s for turn in row.turns] for row in rows] == [[5.0, 60.0, 140.0]]
    assert {row.video for row in rows} == {str(tmp_path / "a.webm")}
    assert json.loads(capsys.readouterr().out)["bad"] == {"missing file": 1, "empty file": 1}


def test_too_much_bad_data_leaves_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = written(tmp_path, {"a.mp4": captions((0.0, 5.0), (9.0, 7.0))})
    out = tmp_path / "rows.parquet"
    with pytest.raises(SystemExit):
        run(monkeypatch, "live_world", path, "--out", str(out))
    assert "1 of 2 captions are bad (50.0%), more than the limit of 5.0%" in capsys.readouterr().err
    assert not out.exists()


@pytest.mark.parametrize("form", READERS)
def test_a_missing_file_is_reported(
    form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        run(monkeypatch, form, str(tmp_path / "none.jsonl"), "--out", str(tmp_path / "rows.parquet"))
    assert "none.jsonl" in capsys.readouterr().err


def test_our_own_rows_are_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path, {"a.mp4": captions((0.0, 5.0), (30.0, 35.0))})
    run(monkeypatch, "live_world", path, "--out", str(tmp_path / "rows.jsonl"))
    assert {row.video for row in rows_in(tmp_path / "rows.jsonl")} == {"a.mp4"}  # no folder was given
    again = str(tmp_path / "again.parquet")
    run(monkeypatch, "rows", str(tmp_path / "rows.jsonl"), "--out", again)
    assert rows_in(Path(again)) == rows_in(tmp_path / "rows.jsonl")
