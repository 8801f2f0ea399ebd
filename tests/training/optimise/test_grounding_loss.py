"""Grounding: places are pulled towards the words that name them."""

from __future__ import annotations

import copy

import numpy as np
import torch
from transformers import PreTrainedTokenizerFast

from model.network.streamchat import StreamChat
from tests.training.sample_worlds import STORY
from training.live_world.clips import place_labels
from training.optimise.grounding_loss import GroundingLoss


def truth_at(*times_s: float) -> torch.Tensor:
    """Class numbers [1, frames, 9, 3] of the story's moments."""
    return torch.from_numpy(np.stack([place_labels(STORY, t) for t in times_s]))[None]


def test_learning_lowers_it(tokenizer: PreTrainedTokenizerFast, random_model: StreamChat) -> None:
    model, grounding = copy.deepcopy(random_model), GroundingLoss(tokenizer)
    truth = truth_at(1.0, 2.5, 5.5, 8.5, 11.5)
    features = torch.randn(1, 5, 9, 160, generator=torch.Generator().manual_seed(0))
    optimizer = torch.optim.Adam([*model.adapter.parameters(), model.language.embed_tokens.weight], lr=3e-3)
    losses: list[float] = []
    for _ in range(40):
        optimizer.zero_grad()
        loss = grounding.loss(model, features, truth)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.5 * losses[0]


def test_moments_in_which_nothing_happens_spoil_nothing(
    tokenizer: PreTrainedTokenizerFast, random_model: StreamChat
) -> None:
    model = copy.deepcopy(random_model)
    loss = GroundingLoss(tokenizer).loss(model, torch.randn(1, 2, 9, 160), truth_at(0.5, 1.0))
    loss.backward()
    assert bool(loss.isfinite())
    assert all(bool(p.grad.isfinite().all()) for p in model.parameters() if p.grad is not None)


def test_only_the_adapter_and_the_words_are_pulled(
    tokenizer: PreTrainedTokenizerFast, random_model: StreamChat
) -> None:
    model = copy.deepcopy(random_model)
    GroundingLoss(tokenizer).loss(model, torch.randn(1, 2, 9, 160), truth_at(2.5, 8.5)).backward()
    pulled = {name.partition(".")[0] for name, p in model.named_parameters() if p.grad is not None}
    assert pulled == {"adapter", "language"}
    assert model.language.layers[0].mlp.up_proj.weight.grad is None  # type: ignore[union-attr]
