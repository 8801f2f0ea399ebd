"""Win, tie and loss rates of one server against another, with confidence intervals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

Outcome = Literal["win", "tie", "loss"]
OUTCOMES: tuple[Outcome, ...] = ("win", "tie", "loss")
NUM_RESAMPLES = 10_000
CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgedQuestion:
    """The outcome of one question. `group`: its video; the bootstrap draws whole groups."""

    group: str
    outcome: Outcome


def combine_orders(once: Outcome, swapped: Outcome) -> Outcome:
    """The outcome of a pair that was judged in both orders: only a winner in both orders wins.

    Both outcomes are from the first server's side, wherever its answer was shown.
    """
    return once if once == swapped else "tie"


def win_rates(
    judged: Sequence[JudgedQuestion], *, num_resamples: int = NUM_RESAMPLES, seed: int = 0
) -> dict[str, Any]:
    """Shares with 95 % bootstrap intervals: {"questions": N, "win": {"share", "low", "high"}, ...}.

    The bootstrap draws whole videos, because questions about one video are not independent. ValueError for no question.
    """
    if not judged:
        raise ValueError("judged: got no question, wanted at least one")
    groups = sorted({j.group for j in judged})
    counts = np.zeros((len(groups), len(OUTCOMES)))
    for one in judged:
        counts[groups.index(one.group), OUTCOMES.index(one.outcome)] += 1
    rng = np.random.default_rng(seed)
    drawn = rng.multinomial(len(groups), np.full(len(groups), 1 / len(groups)), size=num_resamples) @ counts
    shares = drawn / drawn.sum(1, keepdims=True)
    low, high = np.quantile(shares, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2], axis=0)
    rates: dict[str, Any] = {"questions": len(judged), "groups": len(groups)}
    for number, outcome in enumerate(OUTCOMES):
        share = counts[:, number].sum() / len(judged)
        rates[outcome] = {
            "share": round(float(share), 4),
            "low": round(float(low[number]), 4),
            "high": round(float(high[number]), 4),
        }
    return rates
