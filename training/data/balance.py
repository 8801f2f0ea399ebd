"""Splits the samples of a step into parts of nearly equal cost, so that no worker waits long for another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from heapq import heapreplace

from training.data.training_row import TrainingRow, frame_number

CHARACTERS_PER_TOKEN = 4  # about, of English; only a cost follows from it


@dataclass(frozen=True, slots=True, kw_only=True)
class RowCost:
    """Estimates the operations that a row costs, without reading its video or its tokens."""

    per_token: float
    per_frame: float
    frames_per_second: float
    max_frames: int

    def __call__(self, row: TrainingRow) -> float:
        """Operations of the forward and the backward pass."""
        characters = sum(len(turn.instruction) + len(turn.answer) for turn in row.turns)
        tokens = characters / CHARACTERS_PER_TOKEN + 10 * len(row.turns)  # with those of the chat template
        return tokens * self.per_token + self.num_frames(row) * self.per_frame

    def num_frames(self, row: TrainingRow) -> int:
        """Frames of a row; of a dense one if its video is as long as it says."""
        if row.kind != "dense":
            numbers = {"text": 0, "image": 1, "interleaved": len(row.pictures), "offline": self.max_frames}
            return numbers[row.kind]
        start_s = row.time_range[0] if row.time_range else 0.0
        end_s = max(turn.end_s for turn in row.turns)
        fps = self.frames_per_second
        return frame_number(end_s, fps) - frame_number(start_s, fps) + 1


def balanced_parts(costs: Sequence[float], num_parts: int) -> list[list[int]]:
    """Indices of the samples of each part. The costliest sample is placed first, each in the cheapest part so far."""
    parts: list[list[int]] = [[] for _ in range(num_parts)]
    cheapest = [(0.0, part) for part in range(num_parts)]
    for sample in sorted(range(len(costs)), key=lambda i: (-costs[i], i)):
        cost, part = cheapest[0]
        parts[part].append(sample)
        heapreplace(cheapest, (cost + costs[sample], part))
    return parts
