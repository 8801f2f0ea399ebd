"""Logits of the training forward and of the engine, to compare them. No test."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from model.engine.engine import Engine
from model.engine.options import DialogOptions
from model.network.streamchat import StreamChat
from training.data.token_row import Floats, TokenBatch, TokenRow

OPTIONS = DialogOptions(max_tokens=300)


def some_features(num: int, seed: int = 0) -> Tensor:
    """Visual tokens [num, P, Dv]."""
    return torch.randn(num, 9, 160, generator=torch.Generator().manual_seed(seed))


@torch.inference_mode()
def logits_of(model: StreamChat, batch: TokenBatch, features: Tensor) -> Tensor:
    """The training forward's logits [B, T, vocabulary]."""
    return model(
        torch.from_numpy(batch.token_ids),
        torch.from_numpy(batch.text_index),
        features.flatten(0, 1),
        torch.from_numpy(batch.frames_of_row),
        torch.from_numpy(batch.frame_index),
        torch.from_numpy(batch.visible),
    )


def row_of(batch: TokenBatch, number: int) -> TokenRow:
    """A row of a batch without its padding, which sees no frame."""
    length = int(batch.visible[number].any(-1).sum())
    return TokenRow(
        token_ids=batch.token_ids[number, :length],
        text_index=batch.text_index[number, :length],
        frame_index=batch.frame_index[number],
        visible=batch.visible[number, :length],
        loss_mask=batch.loss_mask[number, :length],
        loss_weights=batch.loss_weights[number, :length],
        input_ids=batch.input_ids[number, :length],
    )


class SimulatedCamera:
    """A camera whose frames reach an engine in simulated time."""

    def __init__(self, model: StreamChat, features: Tensor, times: Floats) -> None:
        self.engine, self.features, self.times = Engine(model, max_dialogs=2), features, times
        self.engine.add_camera("camera")
        self.num_arrived = 0

    def advance_to(self, time_s: float) -> None:
        """Add all frames that were captured at or before a time."""
        while self.num_arrived < len(self.times) and self.times[self.num_arrived] <= time_s:
            number = self.num_arrived
            self.engine.add_frame("camera", str(number), float(self.times[number]), self.features[number])
            self.num_arrived += 1

    def served_logits(self, token_ids: list[int], token_times: Sequence[float], num_prompt: int) -> Tensor:
        """Open a dialog and append these answer tokens at their times. Logits [answer tokens, vocabulary]."""
        self.advance_to(token_times[0])
        self.engine.open_dialog("dialog", "camera", token_ids[:num_prompt], OPTIONS)
        rows: list[Tensor] = []
        for position in range(num_prompt, len(token_ids)):
            self.advance_to(token_times[position])
            rows.append(self.engine.logits(["dialog"])[0])
            self.engine.append_token("dialog", token_ids[position])
        return torch.stack(rows)
