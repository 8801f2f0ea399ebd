"""The registry of readers, and rules for all readers of captions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.training.data.readers.dataset_files import (
    ACTIVITYNET,
    COIN,
    EGO4D_V1,
    EGO4D_V2,
    LIVE_WORLD,
    YOUCOOK2,
    rows_of,
    written,
)
from training.data.bad_row import BadRow, BadRowCounter
from training.data.readers.registry import CAPTION_READERS, READERS, ROW_READERS
from training.data.row_files import write_rows
from training.data.training_row import TrainingRow, Turn

SAMPLES: list[tuple[str, Any]] = [
    ("ego4d", EGO4D_V1),
    ("ego4d", EGO4D_V2),
    ("activitynet", ACTIVITYNET),
    ("coin", COIN),
    ("youcook2", YOUCOOK2),
    ("live_world", LIVE_WORLD),
]


def test_every_format_has_one_reader() -> None:
    assert READERS.keys() == CAPTION_READERS.keys() | ROW_READERS.keys()
    assert not CAPTION_READERS.keys() & ROW_READERS.keys()
    assert {name for name, _ in SAMPLES} == CAPTION_READERS.keys() - {"vript"}  # vript reads a folder


def test_our_own_rows_keep_the_name_of_their_source(tmp_path: Path) -> None:
    turns = (Turn(instruction="What?", answer="That."),)
    row = TrainingRow(video="a.mp4", turns=turns, kind="offline", source="somewhere")
    write_rows(str(tmp_path / "rows.jsonl"), [row])
    assert list(READERS["rows"](tmp_path / "rows.jsonl", "other", BadRowCounter())) == [row]


@pytest.mark.parametrize(("name", "good"), SAMPLES)
@pytest.mark.parametrize("nonsense", [None, 3, "video", [], {}, [1], {"narrations": 5}, {"captions": [7]}])
def test_a_wrong_value_in_place_of_a_video_is_a_bad_row(
    tmp_path: Path, name: str, good: dict[str, Any], nonsense: Any
) -> None:
    inner = next((key for key in ("database", "videos") if key in good), "")
    value = {inner: {"x": nonsense} | good[inner]} if inner else {"x": nonsense} | good
    bad = BadRowCounter(max_share=1.0)
    assert rows_of(READERS[name], written(tmp_path, value), bad)
    assert bad.num_bad >= 1


def test_a_file_that_cannot_be_read_raises(tmp_path: Path) -> None:
    (tmp_path / "set.json").write_text("{")
    with pytest.raises(ValueError, match=r"set\.json: got no JSON"):
        rows_of(READERS["activitynet"], tmp_path / "set.json")
    with pytest.raises(FileNotFoundError):
        rows_of(READERS["activitynet"], tmp_path / "none.json")
    with pytest.raises(BadRow, match="wanted an object"):
        rows_of(READERS["coin"], written(tmp_path, [1]))
    with pytest.raises(FileNotFoundError, match=r"_caption\.json in it"):
        rows_of(READERS["vript"], tmp_path)
