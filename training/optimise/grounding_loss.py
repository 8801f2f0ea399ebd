"""The grounding loss: it pulls the features of a place towards the embeddings of the words for it.

The paper first aligns its adapter on captions (section 3.1, stage 1). The live world has exact labels, so this loss
aligns each place of a frame: the adapter's output for a place must point in the direction of the embeddings of the
thing, the colour, the place and the happening. Without this loss, streamchat-tiny learns the names of things late.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedTokenizerFast

from model.network.streamchat import StreamChat
from training.live_world.world import COLOURS, HAPPENINGS, PLACES, THINGS

SHARPNESS = 16.0  # logits are cosines times this
NONE = -100  # class that cross_entropy ignores


class GroundingLoss:
    """The loss, for the words of a tokenizer."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        groups = (("Nothing", *THINGS), tuple(COLOURS), HAPPENINGS, PLACES)
        self.words = [torch.tensor([word_token(tokenizer, w) for w in words]) for words in groups]

    def loss(self, model: StreamChat, features: Tensor, labels: Tensor) -> Tensor:
        """Mean cross-entropy over the groups: features [C, F, P, Dv], labels [C, F, P, 3] of `clips.place_labels`."""
        directions = functional.normalize(model.adapter(features), dim=-1)
        places = torch.arange(labels.shape[2], device=labels.device).expand(labels.shape[:3])
        thing, colour, happening = labels.long().unbind(-1)
        targets = (thing, _or_none(colour), _or_none(happening), places)
        losses: list[Tensor] = []
        for words, target in zip(self.words, targets, strict=True):
            embeddings = model.language.embed_tokens(words.to(features.device))
            logits = SHARPNESS * directions @ functional.normalize(embeddings, dim=-1).T
            losses.append(functional.cross_entropy(logits.flatten(0, 2), target.flatten(), ignore_index=NONE))
        return torch.stack(losses).nanmean()  # a batch without happenings has a loss of nan for them


def _or_none(classes: Tensor) -> Tensor:
    return torch.where(classes > 0, classes - 1, NONE)


def word_token(tokenizer: PreTrainedTokenizerFast, word: str) -> int:
    """The token of a word within a sentence. Raises ValueError if the word is not a single token."""
    ids = tokenizer(" " + word, add_special_tokens=False)["input_ids"]
    if not isinstance(ids, list) or len(ids) != 1:
        raise ValueError(f"the tokenizer has no single token for {word!r}: got {ids}")
    return int(ids[0])
