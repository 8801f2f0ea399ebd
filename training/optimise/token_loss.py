"""Cross-entropy of the next tokens without the whole matrix of logits, by torch's chunked linear_cross_entropy.

Letters: N tokens that are to be predicted, D the language model's width, V the vocabulary's size.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import LinearCrossEntropyOptions
from torch.nn.functional import linear, linear_cross_entropy

CHUNK = 2**24  # logits; below that the whole matrix is cheap, and one product is faster than several


def token_losses(hidden: Tensor, head: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy in nats, float32 [N], of final states [N, D], the head's weight [V, D] and token ids [N]."""
    chunked = len(hidden) * len(head) > CHUNK
    options = LinearCrossEntropyOptions() if chunked else None
    return linear_cross_entropy(hidden, head, targets, reduction="none", options=options).float()


@torch.no_grad()
def are_right(hidden: Tensor, head: Tensor, targets: Tensor) -> Tensor:
    """Whether each target is the likeliest token, bool [N]."""
    rows = max(CHUNK // len(head), 1)
    parts = zip(hidden.split(rows), targets.split(rows), strict=True)
    return torch.cat([linear(states, head).argmax(-1) == wanted for states, wanted in parts])
