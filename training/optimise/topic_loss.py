"""What a question is about, brought to where it is answered.

An answer that goes on begins each sentence by looking for the thing or the place that was asked for; but the word for
it stands far back, in the question. A language model that has read knows how to fetch it. streamchat-tiny has read
nothing and is slow to find out, so for a while it is asked: behind its second layer, half of what an answer's token
carries must point at the embedding of the word that the question is about.
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

SHARPNESS = 12.0  # of cosines, as logits
LAYER = 1  # whose output carries it


class TopicLoss:
    """The loss; made once for a model. It listens to the model's forward."""

    def __init__(self, model: StreamChat, tokenizer: PreTrainedTokenizerFast) -> None:
        self.model = model
        self.words = torch.tensor([word_token(tokenizer, word) for word in (*THINGS, *PLACES)])
        self._hidden: Tensor | None = None
        model.language.layers[LAYER].register_forward_hook(self._listen)

    def loss(self, batch: TokenBatch) -> Tensor:
        """Mean cross-entropy over the answers' tokens of the batch that was just put through the model."""
        assert self._hidden is not None, "the batch comes first"
        hidden, self._hidden = self._hidden, None
        words = self.words.to(hidden.device)
        topics = torch.from_numpy(batch.topics).to(hidden.device)[:, None].expand(batch.loss_mask.shape)
        asked = torch.from_numpy(batch.loss_mask).to(hidden.device) & (topics >= 0)
        if not bool(asked.any()):
            return hidden.sum() * 0.0
        half = hidden.shape[-1] // 2
        pointing = functional.normalize(hidden.flatten(0, -2)[asked.flatten()][:, :half], dim=-1)
        embeddings = functional.normalize(self.model.language.embed_tokens(words)[:, :half], dim=-1)
        wanted = (topics[asked][:, None] == words).int().argmax(-1)
        return functional.cross_entropy(SHARPNESS * pointing @ embeddings.T, wanted)

    def _listen(self, layer: nn.Module, args: object, output: Tensor) -> None:
        self._hidden = output
