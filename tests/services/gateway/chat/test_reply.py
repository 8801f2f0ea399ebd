"""The facts that go along with the words."""

from __future__ import annotations

import pytest

from services.gateway.chat.reply import facts_of, percentile
from services.messages.dialog import TokenEvent
from services.messages.video import PlayedClip

TOKEN = TokenEvent(
    token_id=1, text=" dog", made_s=100.0, time_s=1.23456, frame_id="3500-1", captured_s=3.5, frame_age_ms=96_500.0,
    stale=False,
)  # fmt: skip


@pytest.mark.parametrize(
    ("values", "share", "wanted"),
    [
        ([], 0.5, None),
        ([7.0], 0.95, 7.0),
        ([3.0, 1.0, 2.0], 0.5, 2.0),
        ([float(n) for n in range(1, 101)], 0.95, 95.0),
        ([float(n) for n in range(1, 101)], 0.5, 50.0),
    ],
)
def test_percentiles(values: list[float], share: float, wanted: float | None) -> None:
    assert percentile(values, share) == wanted


def test_a_clips_clock_stands_still_at_its_end() -> None:
    clip = PlayedClip(camera="clip-1", num_frames=8, end_s=4.0)
    assert facts_of(TOKEN, clip).frame_age_ms == 500.0
    assert facts_of(TOKEN, None).frame_age_ms == 96_500.0
    assert facts_of(TOKEN, None).time_s == 1.2346
