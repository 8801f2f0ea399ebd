"""The topic loss: it teaches each token of an answer which word the question is about.

Each sentence of a long answer starts from the thing or place that the question is about, and that word is far back in
the question. A pretrained language model can attend to it. streamchat-tiny has no pretraining and learns this slowly.
So this loss asks for the word: after the second layer, half of the hidden state of an answer's token must point in the
direction of the embedding of the topic word.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedTokenizerFast

from model.network.streamchat import StreamChat
from training.data.token_row import TokenBatch
from training.live_world.world import PLACES, THINGS
from training.optimise.grounding_loss import word_token

SHARPNESS = 12.0  # logits are cosines times this
LAYER = 1  # layer whose output must contain the topic


class TopicLoss:
    """The loss, for one model. A forward hook keeps the hidden states that it needs."""

    def __init__(self, model: StreamChat, tokenizer: PreTrainedTokenizerFast) -> None:
        self.model = model
        self.words = torch.tensor([word_token(tokenizer, word) for word in (*THINGS, *PLACES)])
        self._hidden: Tensor | None = None
        model.language.layers[LAYER].register_forward_hook(self._keep_hidden)

    def loss(self, batch: TokenBatch) -> Tensor:
        """Mean cross-entropy over the answers' tokens. Call it after the model's forward on the same batch."""
        assert self._hidden is not None, "the model's forward must come first"
        hidden, self._hidden = self._hidden, None
        words = self.words.to(hidden.device)
        topics = torch.from_numpy(batch.topics).to(hidden.device)[:, None].expand(batch.loss_mask.shape)
        has_topic = torch.from_numpy(batch.loss_mask).to(hidden.device) & (topics >= 0)
        if not bool(has_topic.any()):
            return hidden.sum() * 0.0
        half = hidden.shape[-1] // 2
        directions = functional.normalize(hidden.flatten(0, -2)[has_topic.flatten()][:, :half], dim=-1)
        embeddings = functional.normalize(self.model.language.embed_tokens(words)[:, :half], dim=-1)
        targets = (topics[has_topic][:, None] == words).int().argmax(-1)
        return functional.cross_entropy(SHARPNESS * directions @ embeddings.T, targets)

    def _keep_hidden(self, layer: nn.Module, args: object, output: Tensor) -> None:
        self._hidden = output
