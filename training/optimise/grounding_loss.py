"""Grounding: what stands in a place is pulled towards the words that name it.

The paper aligns its adapter on captions before anything else (section 3.1, stage 1). Here captions are exact, so the
same is asked place by place, beside the language loss: the adapter's output for a place must point where the
embeddings of the thing's, the colour's, the place's and the happening's words point. Without it, streamchat-tiny
learns early that something happens, and late what it is called.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedTokenizerFast

from model.network.streamchat import StreamChat
from training.live_world.world import COLOURS, HAPPENINGS, PLACES, THINGS

SHARPNESS = 16.0  # of cosines, as logits
NONE = -100


class GroundingLoss:
    """The loss; made once for a tokenizer."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        groups = (("Nothing", *THINGS), tuple(COLOURS), HAPPENINGS, PLACES)
        self.words = [torch.tensor([word_token(tokenizer, w) for w in words]) for words in groups]

    def loss(self, model: StreamChat, features: Tensor, truth: Tensor) -> Tensor:
        """Mean cross-entropy over the groups: features [C, F, P, Dv], truth [C, F, P, 3] of `clips.dataset_labels`."""
        pointing = functional.normalize(model.adapter(features), dim=-1)
        places = torch.arange(truth.shape[2], device=truth.device).expand(truth.shape[:3])
        thing, colour, happening = truth.long().unbind(-1)
        targets = (thing, _or_none(colour), _or_none(happening), places)
        losses: list[Tensor] = []
        for words, target in zip(self.words, targets, strict=True):
            embeddings = model.language.embed_tokens(words.to(features.device))
            logits = SHARPNESS * pointing @ functional.normalize(embeddings, dim=-1).T
            losses.append(functional.cross_entropy(logits.flatten(0, 2), target.flatten(), ignore_index=NONE))
        return torch.stack(losses).nanmean()  # a batch in which nothing happens has no happening to name


def _or_none(classes: Tensor) -> Tensor:
    return torch.where(classes > 0, classes - 1, NONE)


def word_token(tokenizer: PreTrainedTokenizerFast, word: str) -> int:
    """The token of a word within a sentence; ValueError when the tokenizer has no single one for it."""
    ids = tokenizer(" " + word, add_special_tokens=False)["input_ids"]
    if not isinstance(ids, list) or len(ids) != 1:
        raise ValueError(f"the tokenizer has no single token for {word!r}: got {ids}")
    return int(ids[0])
