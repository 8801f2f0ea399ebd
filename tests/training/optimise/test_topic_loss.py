"""The topic loss."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import PreTrainedTokenizerFast

from model.config import preset
from model.network.streamchat import StreamChat
from training.data.token_row import TokenBatch, collate
from training.live_world.curriculum.dialog_tokenizer import DialogTokenizer
from training.live_world.curriculum.tasks import caption_rows
from training.live_world.world import make_world
from training.optimise.topic_loss import LAYER, TopicLoss


@pytest.fixture(scope="module")
def batch(tokenizer: PreTrainedTokenizerFast) -> TokenBatch:
    dialog_tokenizer = DialogTokenizer(tokenizer, 16)
    rows = caption_rows(
        np.random.default_rng(3), dialog_tokenizer, make_world(3, 1), np.linspace(5.0, 6.4, 8), 24
    )
    return collate(rows, [0] * len(rows), 0)


def test_the_topic_is_a_token_of_the_row(tokenizer: PreTrainedTokenizerFast, batch: TokenBatch) -> None:
    assert len(set(batch.topics.tolist())) > 3
    assert -1 in batch.topics
    for ids, topic in zip(batch.token_ids, batch.topics, strict=True):
        assert topic in (-1, *ids), tokenizer.decode([topic])


def test_the_loss_is_low_if_the_layer_output_has_the_topic(
    tokenizer: PreTrainedTokenizerFast, batch: TokenBatch
) -> None:
    torch.manual_seed(0)
    model = StreamChat(preset("tiny", vocab_size=len(tokenizer)))
    topics = TopicLoss(model, tokenizer)
    layer = model.language.layers[LAYER]
    embeddings = model.language.embed_tokens.weight
    wanted = embeddings[torch.from_numpy(np.maximum(batch.topics, 0))][:, None].expand(
        -1, batch.loss_mask.shape[1], -1
    )

    def loss_of(output: torch.Tensor) -> float:
        for hook in layer._forward_hooks.values():  # pyright: ignore[reportPrivateUsage]
            hook(layer, (), output)
        return float(topics.loss(batch).detach())

    right, wrong = loss_of(wanted), loss_of(torch.randn_like(wanted))
    assert right < 0.1 < 2.0 < wrong
