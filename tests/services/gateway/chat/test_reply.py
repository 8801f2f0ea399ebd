"""The facts that go along with the words."""

from __future__ import annotations

from services.gateway.chat.reply import facts_of, frame_age_percentiles
from services.messages.dialog import TokenEvent
from services.messages.video import PlayedClip

TOKEN = TokenEvent(
    token_id=1, text=" dog", generated_s=100.0, time_s=1.23456, frame_id="3500-1", captured_s=3.5,
    frame_age_ms=96_500.0, stale=False,
)  # fmt: skip


def test_the_frame_ages_of_an_empty_answer_are_null() -> None:
    assert frame_age_percentiles([]) == {"frame_age_p50_ms": None, "frame_age_p95_ms": None}


def test_a_clips_clock_stands_still_at_its_end() -> None:
    clip = PlayedClip(camera="clip-1", num_frames=8, end_s=4.0)
    assert facts_of(TOKEN, clip).frame_age_ms == 500.0
    assert facts_of(TOKEN, None).frame_age_ms == 96_500.0
    assert facts_of(TOKEN, None).time_s == 1.2346
