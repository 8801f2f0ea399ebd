"""The time of each word of an answer (paper, section 2.3)."""

from __future__ import annotations


def word_times(start_s: float, end_s: float, num_words: int) -> list[float]:
    """Spread words evenly over [start_s, end_s]. A single word is at the start.

    The paper's example: [5, 10] and six words give 5 6 7 8 9 10. Raises ValueError for a reversed interval.
    """
    if end_s < start_s:
        raise ValueError(f"interval: got [{start_s}, {end_s}], wanted its end at or after its start")
    if num_words < 2:
        return [start_s] * num_words
    return [start_s + (end_s - start_s) * i / (num_words - 1) for i in range(num_words)]
