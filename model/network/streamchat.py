"""StreamChat's network (paper, section 2.1): a Qwen2-shaped language model some of whose layers look at frames.

Letters: B rows, T text tokens of a row, N packed tokens, M frames of all rows, F frames of a row, P visual tokens a
frame, Dv the vision encoder's width, D the language model's width, G key/value heads, d head size.

Visual states never depend on text. So `frame_keys_values` makes keys and values of a frame once, for all who look.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from model.config import StreamChatConfig
from model.network.attention import FrameAttention, KeysValues, TrainingAttention, additive_mask
from model.network.layer import Layer, run_frame_layers
from model.network.norm import RMSNorm
from model.network.rope import RotaryEmbedding
from model.network.vision import VisionTower


class LanguageModel(nn.Module):
    """The Qwen2 part: parameters are named as Hugging Face names them, without its leading `model.`."""

    def __init__(self, config: StreamChatConfig) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Layer(config, index) for index in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        tied = config.tie_word_embeddings
        self.lm_head = None if tied else nn.Linear(config.hidden_size, config.vocab_size, bias=False)


class StreamChat(nn.Module):
    """Vision encoder, adapter and language model."""

    def __init__(self, config: StreamChatConfig) -> None:
        """Random weights (the caller's seed); V-FFNs start as copies of the FFNs."""
        super().__init__()
        self.config = config
        self.flex = False  # FlexAttention for frames in `forward` (GPUs)
        self.vision = VisionTower(config.vision)
        self.adapter = nn.Sequential(
            nn.Linear(config.vision.hidden_size, config.hidden_size),
            nn.GELU(),
            nn.Linear(config.hidden_size, config.hidden_size),
        )
        self.language = LanguageModel(config)
        self.rope = RotaryEmbedding(
            head_dim=config.head_dim, theta=config.rope_theta, grid=config.vision.grid
        )
        self._initialise()

    def forward(self, *batch: Any, **named: Any) -> Tensor:
        """Logits of each position's next token, [B, T, vocabulary], of the arguments of `text_states`."""
        return self.logits(self.text_states(*batch, **named))

    def text_states(
        self,
        token_ids: Tensor,
        text_index: Tensor,
        frame_features: Tensor,
        frames_of_row: Tensor,
        frame_index: Tensor,
        visible: Tensor,
        text_mask: Tensor | None = None,
    ) -> Tensor:
        """Final hidden states [B, T, D], of which `logits` makes those of the next tokens (training).

        Many rows may share a frame: it goes through adapter and V-FFNs once, and each row has its own clock.

        Args:
            token_ids: int64 [B, T]; padding on the right is harmless.
            text_index: temporal indices [B, T] (`model.network.clock.indices`).
            frame_features: vision encoder's output [M, P, Dv].
            frames_of_row: int64 [B, F], which of the M frames are a row's; padding is harmless if it is not visible.
            frame_index: temporal index of each frame on its row's clock, [B, F].
            visible: bool [B, T, F], the frames of position i being those of token i + 1
                (`model.network.clock.visibility`). A position that sees none gets nothing from the cross layers.
            text_mask: bool [B, T, T], what each position may read; None: all up to itself.
        """
        origin = text_index[:, :1]  # only differences matter, and small numbers rotate most exactly
        text_index, frame_index = text_index - origin, frame_index - origin
        frames = FrameAttention(
            self.rope, frame_index, visible, frames_of_row, dtype=self.dtype, flex=self.flex
        )
        mask = None if text_mask is None else additive_mask(text_mask, self.dtype)[0].unsqueeze(1)
        keys_values = self.frame_keys_values(frame_features)
        attention = TrainingAttention(self.rope.rotation(text_index), mask, frames)
        hidden = self.language.embed_tokens(token_ids.flatten())
        for layer in map(self.layer, range(self.config.num_hidden_layers)):
            of_layer = None if layer.cross is None else keys_values[layer.cross]
            hidden = layer(hidden, attention.of_layer(of_layer))
        return self.language.norm(hidden).unflatten(0, token_ids.shape)

    @property
    def dtype(self) -> torch.dtype:
        """Of the language model; the vision encoder may have its own."""
        return self.language.embed_tokens.weight.dtype

    def frame_keys_values(self, features: Tensor) -> list[KeysValues]:
        """All that text ever reads of frames: features [..., P, Dv] -> per cross layer keys, values [..., P, G, d]."""
        visual = self.adapter(features.to(self.dtype)).to(self.dtype)  # under autocast it comes as bfloat16
        layers = [self.layer(index) for index in self.config.cross_layers]
        return list(run_frame_layers(layers, visual, self.rope.grid_rotation(features.device).unsqueeze(2)))

    @property
    def head_weight(self) -> Tensor:
        """The weight that makes logits of final hidden states, [vocabulary, D]."""
        head = self.language.lm_head
        return self.language.embed_tokens.weight if head is None else head.weight

    def logits(self, hidden: Tensor) -> Tensor:
        """[..., D] -> [..., vocabulary]."""
        return linear(hidden, self.head_weight)

    def layer(self, index: int) -> Layer:
        """One of the language model's."""
        layer = self.language.layers[index]
        assert isinstance(layer, Layer)
        return layer

    def _initialise(self) -> None:
        """Linear layers keep torch's initialisation, which suits any width; embeddings are as small as Qwen2's."""
        nn.init.normal_(self.language.embed_tokens.weight, std=0.02)
        for index in range(self.config.num_hidden_layers):
            layer = self.layer(index)
            for projection in (layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.v_proj):
                if self.config.attention_bias:
                    nn.init.zeros_(projection.bias)
            layer.copy_experts()
