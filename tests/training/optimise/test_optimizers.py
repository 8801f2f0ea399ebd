"""The optimizers of a run."""

from __future__ import annotations

from torch import nn

from training.optimise.optimizers import adamw


def test_matrices_decay_and_vectors_do_not_and_frozen_ones_stay_out() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2))
    model[2].weight.requires_grad_(False)
    decaying, others = adamw(model.named_parameters(), 1e-3, 0.05).param_groups
    assert [p.shape for p in decaying["params"]] == [(4, 3)]
    assert [p.ndim for p in others["params"]] == [1, 1, 1, 1]
    assert (decaying["weight_decay"], others["weight_decay"]) == (0.05, 0.0)
