"""COIN."""

from __future__ import annotations

from pathlib import Path

from tests.training.data.readers.dataset_files import (
    COIN,
    captions_of,
    rows_of,
    written,
)
from training.data.readers.coin import read_coin


def test_coin(tmp_path: Path) -> None:
    (row,) = rows_of(read_coin, written(tmp_path, COIN))
    assert (row.video, row.time_range) == ("LtRSn-ntcLY.mp4", (0.0, 131.0309))
    assert captions_of(row)[0] == (60.0, 69.0, "take out the laptop CD drive")
