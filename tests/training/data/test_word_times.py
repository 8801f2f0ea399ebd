"""The time of each word (paper, section 2.3)."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.data.word_times import word_times


def test_the_papers_example() -> None:
    assert word_times(5.0, 10.0, 6) == [5.0, 6.0, 7.0, 8.0, 9.0, 10.0]


@pytest.mark.parametrize(("num_words", "times"), [(0, []), (1, [3.0]), (2, [3.0, 7.0])])
def test_few_words(num_words: int, times: list[float]) -> None:
    assert word_times(3.0, 7.0, num_words) == times


def test_an_interval_without_length_has_one_time() -> None:
    assert word_times(3.0, 3.0, 4) == [3.0] * 4


def test_a_reversed_interval_is_refused() -> None:
    with pytest.raises(ValueError, match=r"got \[10.0, 5.0\], wanted its end at or after its start"):
        word_times(10.0, 5.0, 6)


@given(st.floats(0, 1e4), st.floats(0, 100), st.integers(2, 60))
def test_words_are_spread_evenly_from_start_to_end(start_s: float, length_s: float, num_words: int) -> None:
    times = word_times(start_s, start_s + length_s, num_words)
    assert len(times) == num_words
    assert times[0] == start_s
    assert times[-1] == pytest.approx(start_s + length_s)
    gap_s = length_s / (num_words - 1)
    assert all(b - a == pytest.approx(gap_s, abs=1e-6) for a, b in pairwise(times))
