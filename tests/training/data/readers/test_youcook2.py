"""YouCook2."""

from __future__ import annotations

from pathlib import Path

from tests.training.data.readers.dataset_files import (
    YOUCOOK2,
    captions_of,
    rows_of,
    written,
)
from training.data.readers.youcook2 import read_youcook2


def test_youcook2(tmp_path: Path) -> None:
    (row,) = rows_of(read_youcook2, written(tmp_path, YOUCOOK2))
    assert (row.video, row.time_range) == ("GLd3aX16zBg.mp4", (0.0, 241.62))
    assert captions_of(row)[1] == (114.0, 127.0, "place a slice of cheese on the bread")
