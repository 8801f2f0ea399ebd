"""The grounding loss."""

from __future__ import annotations

import copy

import numpy as np
import torch
from transformers import PreTrainedTokenizerFast

from model.network.streamchat import StreamChat
from tests.training.sample_worlds import STORY
from training.live_world.clips import place_labels
from training.optimise.grounding_loss import GroundingLoss


def labels_at(*times_s: float) -> torch.Tensor:
    """Place labels [1, frames, 9, 3] of the story at these times."""
    return torch.from_numpy(np.stack([place_labels(STORY, t) for t in times_s]))[None]


def test_training_lowers_the_loss(tokenizer: PreTrainedTokenizerFast, random_model: StreamChat) -> None:
    model, grounding = copy.deepcopy(random_model), GroundingLoss(tokenizer)
    labels = labels_at(1.0, 2.5, 5.5, 8.5, 11.5)
    features = torch.randn(1, 5, 9, 160, generator=torch.Generator().manual_seed(0))
    optimizer = torch.optim.Adam([*model.adapter.parameters(), model.language.embed_tokens.weight], lr=3e-3)
    losses: list[float] = []
    for _ in range(40):
        optimizer.zero_grad()
        loss = grounding.loss(model, features, labels)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.5 * losses[0]


def test_the_loss_is_finite_when_nothing_happens(
    tokenizer: PreTrainedTokenizerFast, random_model: StreamChat
) -> None:
    model = copy.deepcopy(random_model)
    loss = GroundingLoss(tokenizer).loss(model, torch.randn(1, 2, 9, 160), labels_at(0.5, 1.0))
    loss.backward()
    assert bool(loss.isfinite())
    assert all(bool(p.grad.isfinite().all()) for p in model.parameters() if p.grad is not None)


def test_only_the_adapter_and_the_embeddings_get_gradients(
    tokenizer: PreTrainedTokenizerFast, random_model: StreamChat
) -> None:
    model = copy.deepcopy(random_model)
    GroundingLoss(tokenizer).loss(model, torch.randn(1, 2, 9, 160), labels_at(2.5, 8.5)).backward()
    with_gradients = {name.partition(".")[0] for name, p in model.named_parameters() if p.grad is not None}
    assert with_gradients == {"adapter", "language"}
    assert model.language.layers[0].mlp.up_proj.weight.grad is None  # type: ignore[union-attr]
