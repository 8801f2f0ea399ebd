"""The training objective: the weighted mean loss of the answers' tokens, plus the grounding and topic losses.

Letters: C clips, F frames of a clip, M pictures, P visual tokens, Dv the encoder's width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from model.network.streamchat import StreamChat
from training.data.micro_batch import MicroBatch
from training.optimise.grounding_loss import GroundingLoss
from training.optimise.token_loss import are_right, token_losses
from training.optimise.topic_loss import TopicLoss


@dataclass(frozen=True, slots=True)
class LossNormalizer:
    """Sums over all micro-batches and workers of a step. Losses are divided by them."""

    loss_weight: float
    num_clips: float


class Objective(nn.Module):
    """The model and its loss on a micro-batch. One module, so FSDP sees a single forward."""

    def __init__(
        self,
        model: StreamChat,
        tokenizer: PreTrainedTokenizerFast | None = None,
        grounding: float = 0.0,
        topic: float = 0.0,
    ) -> None:
        """`grounding`, `topic`: weights of the auxiliary losses. They need the tokenizer."""
        super().__init__()
        self.model, self.aux_weights = model, (grounding, topic)
        self.grounding = GroundingLoss(tokenizer) if grounding and tokenizer is not None else None
        self.topic = TopicLoss(model, tokenizer) if topic and tokenizer is not None else None
        self.encoder_learns = any(p.requires_grad for p in model.vision.parameters())

    def forward(
        self, batch: MicroBatch, normalizer: LossNormalizer, device: torch.device
    ) -> tuple[Tensor, Tensor]:
        """The micro-batch's share of the step's loss, for the backward pass, and its share of the step's values.

        Values are float [4]: loss, token accuracy, grounding loss and topic loss. Their sums over all micro-batches of
        a step are the step's values.
        """
        features = self._features(batch, device)
        loss, accuracy = self._token_loss(batch, features, normalizer, device)
        share = batch.num_clips / normalizer.num_clips
        grounding = topic = loss.new_zeros(())
        if self.grounding is not None and batch.place_labels is not None and batch.num_clips:
            labels = torch.from_numpy(batch.place_labels).to(device)
            of_clips = features.to(self.model.dtype).unflatten(0, labels.shape[:2])
            grounding = share * self.grounding.loss(self.model, of_clips, labels).float()
        if self.topic is not None:
            topic = share * self.topic.loss(batch.tokens).float()
        values = torch.stack([value.detach() for value in (loss, accuracy, grounding, topic)])
        return loss + self.aux_weights[0] * grounding + self.aux_weights[1] * topic, values

    def _features(self, batch: MicroBatch, device: torch.device) -> Tensor:
        """Features of all frames [M, P, Dv]."""
        if batch.features is not None:
            return torch.from_numpy(batch.features).to(device).flatten(0, 1)
        assert batch.pictures is not None
        # No bfloat16 on CPUs: the encoder's attention is slower in it, by more than its matrix products gain.
        with (
            torch.autocast("cpu", enabled=False),
            torch.set_grad_enabled(self.encoder_learns and torch.is_grad_enabled()),
        ):
            return self.model.vision(torch.from_numpy(batch.pictures).to(device))

    def _token_loss(
        self, batch: MicroBatch, features: Tensor, normalizer: LossNormalizer, device: torch.device
    ) -> tuple[Tensor, Tensor]:
        """Weighted cross-entropy and accuracy of the next tokens, each divided by the step's loss weight."""

        def to_device(array: Any) -> Tensor:
            return torch.from_numpy(array).to(device)

        tokens, text_mask = batch.tokens, batch.text_mask()
        states = self.model.text_states(
            to_device(tokens.input_ids),
            to_device(tokens.text_index),
            features,
            to_device(tokens.frames_of_row),
            to_device(tokens.frame_index),
            to_device(tokens.visible),
            None if text_mask is None else to_device(text_mask),
        )
        predicts = tokens.loss_mask[:, :-1].copy()
        predicts[0, 0] |= not predicts.any()  # one token with the weight 0, so that the head has a gradient
        chosen = to_device(predicts)
        hidden, head = states[:, :-1][chosen], self.model.head_weight
        targets = to_device(tokens.token_ids)[:, 1:][chosen]
        weights = to_device(tokens.loss_weights * tokens.loss_mask)[:, :-1][chosen].float()
        weights = weights / normalizer.loss_weight
        loss = (token_losses(hidden, head, targets) * weights).sum()
        accuracy = (are_right(hidden, head, targets) * weights).sum()
        # The second term is 0. It keeps all weights in the graph when no token is part of the loss: FSDP needs a
        # backward pass on every worker.
        return loss + 0.0 * states.float().sum(), accuracy
