"""Bad captions and bad videos: counted and skipped, and the rest is kept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.training.data.readers.dataset_files import (
    ACTIVITYNET,
    rows_of,
    written,
)
from training.data.bad_row import BadRowCounter
from training.data.readers.activitynet import read_activitynet

BAD_CAPTIONS: list[tuple[Any, str]] = [
    ([[19.86, 0.83], "A woman stands."], "reversed interval"),
    ([[70.0, 99.0], "A woman stands."], "outside the clip"),
    ([[-4.0, 2.0], "A woman stands."], "impossible time"),
    ([[0.83, 19.86], "  "], "empty answer"),
    ([[0.83, 19.86], None], "wrong type"),
    ([["a", 19.86], "A woman stands."], "wrong type"),
    ([[True, 19.86], "A woman stands."], "wrong type"),
]


@pytest.mark.parametrize(("caption", "reason"), BAD_CAPTIONS)
def test_a_bad_caption_is_counted_and_its_video_is_kept(tmp_path: Path, caption: Any, reason: str) -> None:
    video = ACTIVITYNET["v_QOlSCBRmfWY"]
    times, sentences = [*video["timestamps"], caption[0]], [*video["sentences"], caption[1]]
    path = written(tmp_path, {"v_a": video | {"timestamps": times, "sentences": sentences}})
    bad = BadRowCounter(max_share=1.0)
    (row,) = rows_of(read_activitynet, path, bad)
    assert len(row.turns) == 3
    assert (bad.num_good, dict(bad.reasons)) == (3, {reason: 1})
    assert "v_a: caption 3" in bad.first_of[reason]


BAD_VIDEOS: list[tuple[Any, str]] = [
    (7, "wrong type"),
    ({"duration": 9.0, "timestamps": [[0, 1]], "sentences": []}, "wrong type"),
    ({"duration": 9.0, "timestamps": [[0, 1, 2]], "sentences": ["a"]}, "wrong type"),
    ({"duration": "9", "timestamps": [[0, 1]], "sentences": ["a"]}, "wrong type"),
    ({"duration": 9.0, "timestamps": [], "sentences": []}, "no captions"),
    ({"duration": 9.0, "timestamps": [[0, 1]] * 10_000, "sentences": ["a"] * 10_000}, "too many captions"),
]


@pytest.mark.parametrize(("video", "reason"), BAD_VIDEOS)
def test_a_bad_video_is_counted_and_the_others_are_kept(tmp_path: Path, video: Any, reason: str) -> None:
    bad = BadRowCounter(max_share=1.0)
    rows = rows_of(read_activitynet, written(tmp_path, {"v_bad": video} | ACTIVITYNET), bad)
    assert [row.video for row in rows] == ["v_QOlSCBRmfWY.mp4"]
    assert bad.reasons == {reason: 1}


def test_the_same_id_twice_counts_once(tmp_path: Path) -> None:
    one = json.dumps(ACTIVITYNET)[1:-1]
    path = tmp_path / "set.json"
    path.write_text(f"{{{one}, {one}}}")
    bad = BadRowCounter(max_share=1.0)
    assert len(rows_of(read_activitynet, path, bad)) == 1
    assert bad.reasons == {"duplicate id": 1}
