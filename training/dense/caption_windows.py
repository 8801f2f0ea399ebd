"""Cuts the captions of long videos into the parts that a language model reads in one request."""

from __future__ import annotations

from dataclasses import replace

from training.data.training_row import TrainingRow, Turn


def cut_captions(row: TrainingRow, longest_s: float) -> list[TrainingRow]:
    """Rows of some successive captions each, from the start of the first to at most `longest_s` seconds later.

    A caption that is longer than that stays whole, as the first of its row. Raises ValueError unless `longest_s` > 0.
    """
    if not longest_s > 0:
        raise ValueError(f"the longest window: got {longest_s:g} s, wanted more than 0")
    windows: list[list[Turn]] = []
    for turn in sorted(row.turns, key=lambda turn: turn.start_s):
        if not windows or turn.end_s > windows[-1][0].start_s + longest_s:
            windows.append([])
        windows[-1].append(turn)
    return [
        replace(row, id="", turns=tuple(some), time_range=(some[0].start_s, max(turn.end_s for turn in some)))
        for some in windows
    ]
