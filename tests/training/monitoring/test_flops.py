"""Operations are those of the weights that are used."""

from __future__ import annotations

import torch

from model.network.streamchat import StreamChat
from training.monitoring.flops import TrainingFlops, peak_flops
from training.optimise.trainable import set_trainable


def test_operations_follow_from_the_weights(random_model: StreamChat) -> None:
    set_trainable(random_model, ["all"])
    everything = TrainingFlops.of(random_model)
    language = sum(
        p.numel()
        for n, p in random_model.named_parameters()
        if p.ndim > 1 and n.startswith("language.") and ".visual" not in n and "embed_tokens" not in n
    )
    assert everything.token == 6 * language
    assert everything.frame > everything.per_encoded_frame > 0
    set_trainable(random_model, ["adapter"])
    adapter = TrainingFlops.of(random_model)
    assert adapter.token == 4 * language
    assert everything.frame - adapter.frame == 4 * 9 * sum(
        p.numel() for p in random_model.vision.parameters() if p.ndim > 1
    )
    set_trainable(random_model, ["all"])


def test_what_a_processor_can_do_is_measured() -> None:
    assert peak_flops(torch.device("cpu")) > 1e8
