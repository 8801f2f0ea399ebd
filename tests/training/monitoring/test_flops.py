"""Operations of a training step, and peak operations of a device."""

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
    assert everything.per_token == 6 * language
    assert everything.per_frame > everything.per_encoded_frame > 0
    set_trainable(random_model, ["adapter"])
    adapter = TrainingFlops.of(random_model)
    assert adapter.per_token == 4 * language
    assert everything.per_frame - adapter.per_frame == 4 * 9 * sum(
        p.numel() for p in random_model.vision.parameters() if p.ndim > 1
    )
    set_trainable(random_model, ["all"])


def test_the_peak_of_a_cpu_is_measured() -> None:
    assert peak_flops(torch.device("cpu")) > 1e8
