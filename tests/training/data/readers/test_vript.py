"""Vript, as it is unpacked."""

from __future__ import annotations

from pathlib import Path

from tests.training.data.readers.dataset_files import (
    VRIPT,
    VRIPT_CUTS,
    captions_of,
    rows_of,
    written,
)
from training.data.bad_row import BadRowCounter
from training.data.readers.vript import read_vript


def test_vript_as_unpacked(tmp_path: Path) -> None:
    written(tmp_path, VRIPT, "vript_captions/vript_long_videos_captions/0J7UPHL08fU_caption.json")
    written(tmp_path, VRIPT_CUTS, "vript_long_videos_clips/0J7UPHL08fU/0J7UPHL08fU_cut_meta.json")
    (row,) = rows_of(read_vript, tmp_path)
    assert row.video == "0J7UPHL08fU.mp4"
    assert captions_of(row) == [
        (0.0, 7.5, "A presenter in a teal hoodie speaks."),
        (7.5, 62.0, "He lifts a white suitcase."),
    ]


def test_vript_scenes_without_times_and_damaged_files(tmp_path: Path) -> None:
    written(tmp_path, VRIPT, "captions/0J7UPHL08fU_caption.json")
    written(tmp_path, {"clips": VRIPT_CUTS["clips"][:1]}, "clips/0J7UPHL08fU_cut_meta.json")
    written(tmp_path, VRIPT, "captions/other_caption.json")
    (tmp_path / "captions" / "broken_caption.json").write_text('{"meta": ')
    written(tmp_path, VRIPT_CUTS, "clips/broken_cut_meta.json")
    bad = BadRowCounter(max_share=1.0)
    (row,) = rows_of(read_vript, tmp_path, bad)
    assert len(row.turns) == 1
    assert bad.reasons == {"wrong type": 1, "no times": 1, "no JSON": 1}
