"""The learning rate schedule."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import nn

from training.optimise.learning_rate import learning_rate, set_learning_rate
from training.optimise.optimizers import adamw


def test_the_rate_warms_up_and_comes_down() -> None:
    rates = [learning_rate(done / 1000, 1e-3) for done in range(1001)]
    assert rates[0] < 1e-4
    assert max(rates) == rates[20] == pytest.approx(1e-3)
    assert all(a < b for a, b in pairwise(rates[:21]))
    assert all(a > b for a, b in pairwise(rates[20:]))
    assert rates[-1] == learning_rate(1.7, 1e-3) == pytest.approx(2e-5)


def test_all_groups_get_the_rate() -> None:
    optimizer = adamw(nn.Linear(2, 2).named_parameters(), 1e-3, 0.1)
    set_learning_rate(optimizer, 5e-4)
    assert [group["lr"] for group in optimizer.param_groups] == [5e-4, 5e-4]
    assert isinstance(optimizer, torch.optim.AdamW)
