"""Captions of live-world clips."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.training.data.readers.dataset_files import (
    LIVE_WORLD,
    captions_of,
    rows_of,
    written,
)
from training.data.readers.live_world import read_live_world
from training.live_world.world import TEST_SEEDS


def test_the_live_worlds_captions(tmp_path: Path) -> None:
    (row,) = rows_of(read_live_world, written(tmp_path, LIVE_WORLD))
    assert (row.video, row.time_range) == ("0000.mp4", (0.0, 20.0))
    assert captions_of(row) == [(0.0, 5.0, "A red dog is at top-left.")]


def test_captions_of_held_out_clips_are_refused(tmp_path: Path) -> None:
    world = {"seed": TEST_SEEDS.start + 3, "duration_s": 20.0}
    held_out = {name: clip | {"world": world} for name, clip in LIVE_WORLD.items()}
    with pytest.raises(ValueError, match=r"0000\.mp4 is held out for tests: its seed is 1000003"):
        rows_of(read_live_world, written(tmp_path, held_out))
