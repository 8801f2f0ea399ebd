"""How evenly the samples of a step are spread over workers, and how little of their rows is padding."""

from __future__ import annotations

import numpy as np
import pytest

from training.data.balance import RowCost, balanced_parts
from training.data.packing import bins, equal_bins
from training.data.training_row import Kind, TrainingRow, Turn

# Operations of a token and of a frame of a 7b model, of which everything learns.
COST = RowCost(per_token=4e10, per_frame=1.6e12, frames_per_second=1.0, max_frames=32)
NUM_WORKERS, GLOBAL_BATCH, MAX_TOKENS = 64, 768, 4096


def some_rows(seed: int) -> list[TrainingRow]:
    """A step of instruction tuning: pictures, videos, dense rows of any length, and texts."""
    rng = np.random.default_rng(seed)
    kinds: list[Kind] = ["image", "offline", "dense", "text"]
    rows: list[TrainingRow] = []
    for number, chosen in enumerate(rng.choice(4, GLOBAL_BATCH, p=[0.6, 0.2, 0.15, 0.05])):
        kind = kinds[chosen]
        answer = "x" * int(rng.lognormal(6.5, 0.8))
        end_s = float(rng.uniform(2, 62))
        turn = Turn(start_s=end_s / 2, end_s=end_s, instruction="What happens?", answer=answer)
        video = "" if kind == "text" else "a.mp4"
        rows.append(TrainingRow(video=video, turns=(turn,), kind=kind, source="t", id=str(number)))
    return rows


def test_frames_of_rows() -> None:
    turn = Turn(start_s=4.0, end_s=9.5, instruction="What?", answer="That.")
    row = TrainingRow(video="a.mp4", turns=(turn,), kind="dense", source="t", time_range=(2.0, 9.5))
    assert COST.num_frames(row) == 8
    others: tuple[tuple[Kind, str], ...] = (("image", "a.png"), ("offline", "a.mp4"), ("text", ""))
    numbers = {kind: COST.num_frames(TrainingRow(video=video, turns=(turn,), kind=kind, source="t"))
               for kind, video in others}  # fmt: skip
    assert numbers == {"image": 1, "offline": 32, "text": 0}


@pytest.mark.parametrize("seed", range(5))
def test_the_slowest_of_64_workers_takes_at_most_a_tenth_longer_than_the_mean(seed: int) -> None:
    """The real number of tokens differs from the estimate by up to a third."""
    rows = some_rows(seed)
    off = np.random.default_rng(seed).uniform(0.75, 1.33, len(rows))
    frames = np.array([COST.num_frames(row) for row in rows])
    estimated = np.array([COST(row) for row in rows])
    real = (estimated - frames * COST.per_frame) * off + frames * COST.per_frame

    def slowest(parts: list[list[int]]) -> float:
        costs = [real[part].sum() for part in parts]
        return max(costs) / np.mean(costs)

    per_part = GLOBAL_BATCH // NUM_WORKERS
    in_order = [list(range(n * per_part, (n + 1) * per_part)) for n in range(NUM_WORKERS)]
    assert slowest(in_order) > 1.4
    assert slowest(balanced_parts(estimated.tolist(), NUM_WORKERS)) < 1.1


@pytest.mark.parametrize("num_samples", [12, 48])
def test_little_of_the_packed_rows_is_padding(num_samples: int) -> None:
    padding: list[float] = []
    for seed in range(50):
        rng = np.random.default_rng(seed)
        lengths = np.minimum(rng.lognormal(5.5, 0.8, num_samples), MAX_TOKENS).astype(int).tolist()
        rows = equal_bins(lengths, MAX_TOKENS)
        assert len(rows) == len(bins(lengths, MAX_TOKENS))
        sums = [sum(lengths[i] for i in row) for row in rows]
        assert max(sums) <= MAX_TOKENS
        padding.append(1 - sum(sums) / (len(sums) * max(sums)))
    assert np.mean(padding) < 0.05


def test_no_samples_and_more_parts_than_samples() -> None:
    assert balanced_parts([], 3) == [[], [], []]
    assert balanced_parts([1.0, 5.0], 3) == [[1], [0], []]
    assert equal_bins([], 10) == []
