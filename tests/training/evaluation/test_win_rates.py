"""Win, tie and loss rates and their intervals."""

from __future__ import annotations

import numpy as np
import pytest

from training.evaluation.win_rates import (
    OUTCOMES,
    JudgedQuestion,
    Outcome,
    combine_orders,
    win_rates,
)


def judged(counts: dict[Outcome, int], per_group: int = 1) -> list[JudgedQuestion]:
    outcomes: list[Outcome] = [outcome for outcome, num in counts.items() for _ in range(num)]
    return [
        JudgedQuestion(group=str(number // per_group), outcome=outcome)
        for number, outcome in enumerate(outcomes)
    ]


@pytest.mark.parametrize(
    ("once", "swapped", "both"),
    [
        ("win", "win", "win"),
        ("loss", "loss", "loss"),
        ("win", "loss", "tie"),  # whoever was shown first was preferred: the order decided, not the answer
        ("win", "tie", "tie"),
        ("tie", "tie", "tie"),
    ],
)
def test_both_orders_must_agree(once: Outcome, swapped: Outcome, both: Outcome) -> None:
    assert combine_orders(once, swapped) == combine_orders(swapped, once) == both


def test_shares_and_intervals() -> None:
    rates = win_rates(judged({"win": 50, "tie": 30, "loss": 20}))
    assert [rates[o]["share"] for o in OUTCOMES] == [0.5, 0.3, 0.2]
    # A share of a hundred independent answers: 1.96 * sqrt(p (1 - p) / 100) to either side.
    for outcome, share in zip(OUTCOMES, (0.5, 0.3, 0.2), strict=True):
        half = 1.96 * (share * (1 - share) / 100) ** 0.5
        assert rates[outcome]["low"] == pytest.approx(share - half, abs=0.015)
        assert rates[outcome]["high"] == pytest.approx(share + half, abs=0.015)
    assert win_rates(judged({"win": 50, "tie": 30, "loss": 20})) == rates


def test_questions_about_one_video_are_drawn_together() -> None:
    alone = win_rates(judged({"win": 60, "loss": 60}))["win"]
    together = win_rates(judged({"win": 60, "loss": 60}, per_group=10))["win"]
    assert together["high"] - together["low"] > 2.5 * (alone["high"] - alone["low"])


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    rng = np.random.default_rng(1)
    held = 0
    for _ in range(200):
        outcomes = rng.choice(len(OUTCOMES), size=80, p=(0.4, 0.3, 0.3))
        some = [JudgedQuestion(group=str(i), outcome=OUTCOMES[o]) for i, o in enumerate(outcomes)]
        rates = win_rates(some, num_resamples=400)
        held += rates["win"]["low"] <= 0.4 <= rates["win"]["high"]
    assert 176 <= held <= 199


def test_no_question_is_an_error() -> None:
    with pytest.raises(ValueError, match="wanted at least one"):
        win_rates([])
