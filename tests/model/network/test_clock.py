"""The clock's rules, one by one, and on random events."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.network.clock import Clock, indices, visibility

times = st.lists(st.integers(0, 40), max_size=25).map(lambda values: [value / 4 for value in sorted(values)])


def test_frames_advance_the_clock_while_nobody_speaks():
    clock = Clock()
    assert [clock.frame_arrived() for _ in range(3)] == [1, 2, 3]


def test_a_turn_starts_at_the_newest_frames_index_and_is_contiguous():
    clock = Clock()
    newest = [clock.frame_arrived() for _ in range(4)][-1]
    clock.turn_started()
    assert [clock.token_made() for _ in range(3)] == [newest, newest + 1, newest + 2]


def test_frames_during_a_turn_share_the_newest_tokens_index():
    clock = Clock()
    clock.frame_arrived()
    clock.turn_started()
    token = clock.token_made()
    assert [clock.frame_arrived(), clock.frame_arrived()] == [token, token]
    assert clock.token_made() == token + 1


def test_a_second_turn_starts_after_the_first_ones_last_token():
    clock = Clock()
    clock.turn_started()
    last = [clock.token_made() for _ in range(3)][-1]
    clock.turn_ended()
    clock.turn_started()
    assert clock.token_made() == last + 1
    clock.turn_ended()
    newest = [clock.frame_arrived() for _ in range(5)][-1]
    clock.turn_started()
    assert clock.token_made() == newest == last + 6


def test_a_token_needs_a_turn():
    with pytest.raises(ValueError, match="outside a turn"):
        Clock().token_made()


def test_indices_of_a_known_scene():
    text, frames = indices([2.0, 2.0, 3.0, 4.0], [0.0, 1.0, 2.0, 2.5, 3.5, 5.0])
    assert text.tolist() == [3, 4, 5, 6]
    assert frames.tolist() == [1, 2, 3, 4, 5, 7]


@given(times, times, st.integers(-50, 50), st.data())
def test_indices_keep_the_rules_on_any_events(
    text: list[float], frames: list[float], shift: int, data: st.DataObject
):
    starts = (
        sorted({0, *data.draw(st.lists(st.integers(0, max(len(text) - 1, 0)), max_size=3))}) if text else []
    )
    text_index, frame_index = indices(text, frames, starts)
    for start, end in zip(starts, [*starts[1:], len(text)][: len(starts)], strict=True):
        assert np.all(np.diff(text_index[start:end]) == 1)
    assert np.all(np.diff(text_index) >= 1)
    assert np.all(np.diff(frame_index) >= 0)
    moved = indices([t + shift for t in text], [t + shift for t in frames], starts)
    assert moved[0].tolist() == text_index.tolist()
    assert moved[1].tolist() == frame_index.tolist()


@given(times, times)
def test_a_frame_during_a_turn_shares_the_index_of_the_text_of_its_moment(
    text: list[float], frames: list[float]
):
    text_index, frame_index = indices(text, frames, [0] if text else [])
    for time_s, index in zip(frames, frame_index, strict=True):
        if text and text[0] < time_s <= text[-1]:
            spoken = [i for t, i in zip(text, text_index, strict=True) if t < time_s]
            assert index == spoken[-1]


@given(st.lists(st.integers(0, 45).map(lambda value: value / 4), max_size=10), times, st.integers(1, 6))
def test_visibility_is_the_newest_frames_at_or_before(
    queries: list[float], frames: list[float], capacity: int
):
    seen = visibility(queries, frames, capacity)
    assert seen.shape == (len(queries), len(frames))
    for row, time_s in zip(seen, queries, strict=True):
        wanted = [number for number, captured in enumerate(frames) if captured <= time_s][-capacity:]
        assert np.flatnonzero(row).tolist() == wanted


@pytest.mark.parametrize(
    ("text", "frames", "turns"), [([2, 1], [], [0]), ([1], [2, 1], [0]), ([1, 2], [], [1]), ([1], [], [0, 1])]
)
def test_events_out_of_order_are_refused(text: list[float], frames: list[float], turns: list[int]):
    with pytest.raises(ValueError, match="wanted"):
        indices(text, frames, turns)
