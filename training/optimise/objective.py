"""What a step makes small: the weighted mean loss of all words that count, and grounding beside it.

Letters: C clips, F frames of a clip, M pictures, P visual tokens, Dv the encoder's width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedTokenizerFast

from model.network.streamchat import StreamChat
from training.data.micro_batch import MicroBatch
from training.optimise.grounding_loss import GroundingLoss
from training.optimise.topic_loss import TopicLoss


@dataclass(frozen=True, slots=True)
class LossNormalizer:
    """Of a whole step, over all parts and workers: what its sums are divided by."""

    weight: float
    clips: float


class Objective(nn.Module):
    """The model and its loss on one part. One module, so that whatever shards it sees a single forward."""

    def __init__(
        self,
        model: StreamChat,
        tokenizer: PreTrainedTokenizerFast | None = None,
        grounding: float = 0.0,
        topic: float = 0.0,
    ) -> None:
        """`grounding`, `topic`: weights of the losses beside the words' own, for which words must be known."""
        super().__init__()
        self.model, self.shares = model, (grounding, topic)
        self.grounding = GroundingLoss(tokenizer) if grounding and tokenizer is not None else None
        self.topics = TopicLoss(model, tokenizer) if topic and tokenizer is not None else None
        self.encoder_learns = any(p.requires_grad for p in model.vision.parameters())

    def forward(
        self, part: MicroBatch, totals: LossNormalizer, device: torch.device
    ) -> tuple[Tensor, Tensor]:
        """This part's share of the step's loss, to go backward from, and float [4]: what it adds to the step's

        loss, share of right words, grounding loss and topic loss. Sums over a step's parts are the step's values.
        """
        features = self._features(part, device)
        loss, right = self._words(part, features, totals, device)
        share = part.num_clips / totals.clips
        grounding = topic = loss.new_zeros(())
        if self.grounding is not None and part.truth is not None and part.num_clips:
            truth = torch.from_numpy(part.truth).to(device)
            grounding = share * self.grounding.loss(self.model, features.to(self.model.dtype), truth).float()
        if self.topics is not None:
            topic = share * self.topics.loss(part.batch).float()
        told = torch.stack([part.detach() for part in (loss, right, grounding, topic)])
        return loss + self.shares[0] * grounding + self.shares[1] * topic, told

    def _features(self, part: MicroBatch, device: torch.device) -> Tensor:
        """[C, F, P, Dv]"""
        if part.features is not None:
            return torch.from_numpy(part.features).to(device)
        assert part.pictures is not None
        assert part.slots is not None
        # Not in a CPU's bfloat16: the encoder's attention would take longer than its products save.
        with (
            torch.autocast("cpu", enabled=False),
            torch.set_grad_enabled(self.encoder_learns and torch.is_grad_enabled()),
        ):
            seen = self.model.vision(torch.from_numpy(part.pictures).to(device))
        num_frames = part.batch.visible.shape[2]
        num_clips = int(part.batch.clip_of_row.max()) + 1
        every = seen.new_zeros((num_clips * num_frames, *seen.shape[1:]))
        every = every.index_copy(0, torch.from_numpy(part.slots).to(device), seen)
        return every.unflatten(0, (num_clips, num_frames))

    def _words(
        self, part: MicroBatch, features: Tensor, totals: LossNormalizer, device: torch.device
    ) -> tuple[Tensor, Tensor]:
        def there(array: Any) -> Tensor:
            return torch.from_numpy(array).to(device)

        batch, mask = part.batch, part.text_mask()
        hidden_mask = None if mask is None else there(mask)
        logits = self.model(
            there(batch.input_ids),
            there(batch.text_index),
            features,
            there(batch.clip_of_row),
            there(batch.frame_index),
            there(batch.visible),
            hidden_mask,
        )
        counts = there(batch.loss_mask)[:, :-1]
        said, wanted = logits[:, :-1][counts].float(), there(batch.token_ids)[:, 1:][counts]
        weights = there(batch.loss_weights)[:, :-1][counts].float() / totals.weight
        losses = functional.cross_entropy(said, wanted, reduction="none")
        right = ((said.argmax(-1) == wanted) * weights).sum()
        # Where nothing counts the sum is empty, and yet all that takes part must be gone back through.
        return (losses * weights).sum() + 0.0 * logits.float().sum(), right
