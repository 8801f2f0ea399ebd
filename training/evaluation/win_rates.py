"""Wins, ties and losses of one candidate against another, and how sure they are."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

Outcome = Literal["win", "tie", "loss"]
OUTCOMES: tuple[Outcome, ...] = ("win", "tie", "loss")
RESAMPLES = 10_000
LEVEL = 0.95


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """One question, judged. `group`: what is drawn together in the bootstrap, that is, its video."""

    group: str
    outcome: Outcome


def both_orders(once: Outcome, swapped: Outcome) -> Outcome:
    """A judge asked twice, the answers swapped: who is not preferred both times has not won.

    Both are from the first candidate's side, wherever its answer stood.
    """
    return once if once == swapped else "tie"


def win_rates(judged: Sequence[Judged], *, resamples: int = RESAMPLES, seed: int = 0) -> dict[str, Any]:
    """Shares with 95 % bootstrap intervals: {"questions": N, "win": {"share", "low", "high"}, ...}.

    Whole videos are drawn, for the questions about one video are no independent witnesses. ValueError for none.
    """
    if not judged:
        raise ValueError("judged: got no question, wanted at least one")
    groups = sorted({j.group for j in judged})
    counts = np.zeros((len(groups), len(OUTCOMES)))
    for one in judged:
        counts[groups.index(one.group), OUTCOMES.index(one.outcome)] += 1
    rng = np.random.default_rng(seed)
    drawn = rng.multinomial(len(groups), np.full(len(groups), 1 / len(groups)), size=resamples) @ counts
    shares = drawn / drawn.sum(1, keepdims=True)
    low, high = np.quantile(shares, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
    rates: dict[str, Any] = {"questions": len(judged), "groups": len(groups)}
    for number, outcome in enumerate(OUTCOMES):
        share = counts[:, number].sum() / len(judged)
        rates[outcome] = {
            "share": round(float(share), 4),
            "low": round(float(low[number]), 4),
            "high": round(float(high[number]), 4),
        }
    return rates


def percent(rate: dict[str, float]) -> str:
    """`41 % (35–47)`."""
    return f"{100 * rate['share']:.0f} % ({100 * rate['low']:.0f}–{100 * rate['high']:.0f})"


def rate_table(rows: Iterable[dict[str, Any]]) -> str:
    """Win, tie and loss of each `first` against its `second`, with 95 % intervals, as a Markdown table."""
    lines = ["| candidate | against | win | tie | loss | questions |", "|" + " --- |" * 6]
    for row in rows:
        shares = [percent(row[o]) for o in OUTCOMES] if row["questions"] else ["–"] * 3
        lines.append("| " + " | ".join([row["first"], row["second"], *shares, str(row["questions"])]) + " |")
    return "\n".join(lines) + "\n"
