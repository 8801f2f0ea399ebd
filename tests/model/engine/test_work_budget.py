"""The sizes that a work budget chooses, on plain numbers of tokens and seconds."""

from __future__ import annotations

import math

import pytest

from model.engine.work_budget import WorkBudget


def test_pieces_learn_how_large_they_may_be():
    budget = WorkBudget(8, 64)
    assert budget.num_tokens(1.0) == 8
    assert budget.num_tokens(math.inf) == 64
    budget.record(8, 0.08)  # 10 ms each
    assert budget.num_tokens(1.0) == 40
    assert budget.num_tokens(0.1) == 16  # tried once: 8 may take as long
    budget.record(40, 1.2)  # a slow layer
    assert budget.num_tokens(1.0) == 13
    for _ in range(30):
        budget.record(13, 0.013)
    assert budget.num_tokens(1.0) == 64


def pieces_of(num_tokens: int, *, fixed_s: float, token_s: float, allowed_s: float) -> list[int]:
    """The sizes of the pieces of a prompt, where a piece costs a fixed time and a time per token."""
    budget, pieces = WorkBudget(8, 512), list[int]()
    while num_tokens:
        pieces.append(min(budget.num_tokens(allowed_s), num_tokens))
        budget.record(pieces[-1], fixed_s + token_s * pieces[-1])
        num_tokens -= pieces[-1]
    return pieces


def test_a_fixed_cost_does_not_keep_pieces_at_the_minimum():
    """8 tokens cost more than a piece may; were all of it the tokens' cost, no piece would ever be larger."""
    pieces = pieces_of(1000, fixed_s=0.009, token_s=0.0003, allowed_s=0.03)
    assert pieces[0] == 8
    assert len(pieces) < 60
    pieces = pieces_of(1000, fixed_s=0.009, token_s=0.0003, allowed_s=0.01)
    assert len(pieces) < 50
    assert max(pieces) <= 30  # their tokens cost no more than the fixed time


@pytest.mark.parametrize("allowed_s", [0.05, 0.1, 0.3])
def test_a_piece_takes_less_than_half_of_what_is_allowed(allowed_s: float):
    pieces = pieces_of(1000, fixed_s=0.004, token_s=0.0005, allowed_s=allowed_s)
    assert max(0.004 + 0.0005 * size for size in pieces) < allowed_s / 2
    assert len(pieces) < 1000 / ((0.4 * allowed_s - 0.004) / 0.0005) + 6


def test_where_only_tokens_cost_pieces_stay_at_the_minimum():
    """Whether larger ones pay is tried now and then, with twice the size."""
    pieces = pieces_of(1000, fixed_s=0.0, token_s=0.001, allowed_s=0.01)
    assert max(pieces) <= 16
    assert pieces.count(8) > 0.9 * len(pieces)
