"""Ego4D's narrations, of both versions."""

from __future__ import annotations

from pathlib import Path

from tests.training.data.readers.dataset_files import (
    EGO4D_V1,
    EGO4D_V2,
    captions_of,
    rows_of,
    written,
)
from training.data.bad_row import BadRowCounter
from training.data.readers.ego4d import read_ego4d


def test_ego4d_narrations(tmp_path: Path) -> None:
    bad = BadRowCounter(max_share=1.0)
    rows = rows_of(read_ego4d, written(tmp_path, EGO4D_V1), bad)
    assert [row.video for row in rows] == ["001e3e4e-2743-47fc-8564-d5efd11f9e90.mp4"] * 2
    assert captions_of(rows[0]) == [
        (3.3445, 6.5, "The camera wearer picks a bag of clothes from the floor"),
        (6.5, 16.5, "Man X walks past the camera wearer with something"),
        (40.0, 41.0, "The camera wearer drops the bag"),
    ]
    assert captions_of(rows[1]) == [(3.0, 4.0, "The camera wearer lifts a bag")]
    assert bad.reasons == {"no captions": 1}  # the redacted one


def test_a_bad_narration_is_counted_and_its_video_is_kept(tmp_path: Path) -> None:
    narrations = EGO4D_V2["videos"]["0a0a"]["narrations"]
    more = [{"time": "2.5", "text": "#C C sits"}, 7, {"time": 3.0, "text": None}, {"time": 4.0, "text": "#C"}]
    bad = BadRowCounter(max_share=1.0)
    (row,) = rows_of(
        read_ego4d, written(tmp_path, {"videos": {"0a0a": {"narrations": narrations + more}}}), bad
    )
    assert len(row.turns) == 1
    assert bad.reasons == {"wrong type": 3, "empty answer": 1}


def test_ego4d_narrations_of_the_second_version(tmp_path: Path) -> None:
    (row,) = rows_of(read_ego4d, written(tmp_path, EGO4D_V2))
    assert row.video == "0a0a.mp4"
    assert captions_of(row) == [(2.5, 3.5, "The camera wearer holds knitting sticks by hand.")]
