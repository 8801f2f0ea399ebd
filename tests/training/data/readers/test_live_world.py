"""Captions of live-world clips."""

from __future__ import annotations

from pathlib import Path

from tests.training.data.readers.dataset_files import (
    LIVE_WORLD,
    captions_of,
    rows_of,
    written,
)
from training.data.readers.live_world import read_live_world


def test_the_live_worlds_captions(tmp_path: Path) -> None:
    (row,) = rows_of(read_live_world, written(tmp_path, LIVE_WORLD))
    assert (row.video, row.time_range) == ("0000.mp4", (0.0, 20.0))
    assert captions_of(row) == [(0.0, 5.0, "A red dog is at top-left.")]
