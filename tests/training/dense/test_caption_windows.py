"""How the captions of a long video are cut into requests."""

from __future__ import annotations

import pytest

from training.data.training_row import TrainingRow, Turn
from training.dense.caption_windows import cut_captions


def captions(*times: tuple[float, float]) -> TrainingRow:
    turns = tuple(Turn(start_s=a, end_s=b, instruction="What?", answer="That.") for a, b in times)
    return TrainingRow(video="a.mp4", time_range=(0.0, 200.0), turns=turns, kind="dense", source="ego4d")


def test_successive_captions_share_a_window() -> None:
    row = captions((5.0, 39.0), (0.0, 5.0), (38.0, 45.0), (100.0, 190.0), (120.0, 130.0))
    windows = cut_captions(row, 40.0)
    assert [window.time_range for window in windows] == [(0.0, 39.0), (38.0, 45.0), (100.0, 190.0)]
    assert [len(window.turns) for window in windows] == [2, 1, 2]
    assert len({window.id for window in windows}) == 3


@pytest.mark.parametrize("longest_s", [0.0, -1.0, float("nan")])
def test_a_window_of_no_length(longest_s: float) -> None:
    with pytest.raises(ValueError, match="wanted more than 0"):
        cut_captions(captions((0.0, 5.0)), longest_s)
