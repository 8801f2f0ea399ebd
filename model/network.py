"""StreamChat's network (paper, section 2.1): a Qwen2-shaped language model some of whose layers look at frames.

Letters: B rows, T text tokens, C clips, F frames of a clip, N frames of any kind, P visual tokens a frame,
Dv the vision encoder's width, D the language model's width, H query heads, G key/value heads, d head size.

One cross layer, with text states `hidden` [B, T, D] and visual states `visual` [N, P, D]:

    hidden = hidden + gate_cross * CrossAttention(norm(hidden), norm(visual))   self-attention's own weights and norm
    visual = visual + gate_visual * visual_ffn(visual_norm(visual))             starts as a copy of this layer's FFN
    hidden = hidden + SelfAttention(norm(hidden))
    hidden = hidden + FFN(post_norm(hidden))

Visual states never depend on text. So a frame's keys and values are made by `visual_chain`, once, for whoever looks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, rms_norm, silu

from model.attention import FrameView, additive, self_attention
from model.config import StreamChatConfig
from model.rope import Rope, Turn, rotate
from model.vision import VisionTower

KeysValues = tuple[Tensor, Tensor]  # of one cross layer, each [..., P, G, d]; keys turned by (0, y, x)


class TextState(Protocol):
    """Text that was read before: what lasts between steps. None stands for training, where nothing lasts."""

    mask: Tensor | None  # additive [B, 1, T, L], or None: see `self_attention`

    def extend(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Keep the new keys and values [B, G, T, d]; returns all of them, [B, G, L, d]."""
        ...


@dataclass(frozen=True, slots=True)
class Sight:
    """Some rows' view of some clips, with those clips' keys and values [C, F, P, G, d], one pair per cross layer."""

    view: FrameView
    keys_values: Sequence[KeysValues]
    rows: Tensor | None = None  # which rows of the batch; None: all


@dataclass(frozen=True, slots=True)
class Text:
    """What every layer needs to know about the text tokens that are being read."""

    turn: Turn  # [B, 1, T, d/2]
    mask: Tensor | None
    state: TextState | None


class Norm(nn.Module):
    """RMSNorm."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] -> [..., D]."""
        return rms_norm(x, self.weight.shape, self.weight, self.eps)


class FeedForward(nn.Module):
    """SwiGLU, for text (FFN) and for visual tokens (V-FFN)."""

    def __init__(self, config: StreamChatConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] -> [..., D]."""
        return self.down_proj(silu(self.gate_proj(x)) * self.up_proj(x))


class Attention(nn.Module):
    """The four projections; the same ones serve self-attention and cross-attention."""

    def __init__(self, config: StreamChatConfig) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        width, groups = config.hidden_size, config.num_key_value_heads * config.head_dim
        heads = config.num_attention_heads * config.head_dim
        self.q_proj = nn.Linear(width, heads, bias=config.attention_bias)
        self.k_proj = nn.Linear(width, groups, bias=config.attention_bias)
        self.v_proj = nn.Linear(width, groups, bias=config.attention_bias)
        self.o_proj = nn.Linear(heads, width, bias=False)

    def queries(self, x: Tensor) -> Tensor:
        """[B, T, D] -> [B, H, T, d]."""
        return self.q_proj(x).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)

    def keys_values(self, x: Tensor) -> KeysValues:
        """[..., D] -> keys and values, each [..., G, d]."""
        shape = (-1, self.head_dim)
        return self.k_proj(x).unflatten(-1, shape), self.v_proj(x).unflatten(-1, shape)

    def output(self, read: Tensor) -> Tensor:
        """[B, H, T, d] -> [B, T, D]."""
        return self.o_proj(read.transpose(1, 2).flatten(2))


class Layer(nn.Module):
    """A Qwen2 layer; a cross layer has gates, a V-FFN unless it is the last one, and may have its own projections."""

    def __init__(self, config: StreamChatConfig, index: int) -> None:
        super().__init__()
        self.index = index
        self.self_attn = Attention(config)
        self.mlp = FeedForward(config)
        self.input_layernorm = Norm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = Norm(config.hidden_size, config.rms_norm_eps)
        self.tanh = config.gate == "tanh"
        self.gate_cross: nn.Parameter | None = None
        self.gate_visual: nn.Parameter | None = None
        self.visual_ffn: FeedForward | None = None
        self.visual_norm: Norm | None = None
        self.cross_attn: Attention | None = None
        if index not in config.cross_layers:
            return
        self.gate_cross = nn.Parameter(torch.full((config.hidden_size,), config.gate_init))
        if not config.share_attention_parameters:
            self.cross_attn = Attention(config)
        if (
            config.visual_ffn and index != config.cross_layers[-1]
        ):  # nobody reads what the last one would make
            self.gate_visual = nn.Parameter(torch.full((config.hidden_size,), config.gate_init))
            self.visual_ffn = FeedForward(config)
            self.visual_norm = Norm(config.hidden_size, config.rms_norm_eps)

    def copy_experts(self) -> None:
        """Start what belongs to frames as copies of what belongs to text."""
        if self.cross_attn is not None:
            self.cross_attn.load_state_dict(self.self_attn.state_dict())
        if self.visual_ffn is not None and self.visual_norm is not None:
            self.visual_ffn.load_state_dict(self.mlp.state_dict())
            self.visual_norm.load_state_dict(self.post_attention_layernorm.state_dict())

    def see(self, visual: Tensor, place: Turn) -> tuple[KeysValues, Tensor]:
        """visual [..., P, D] -> this layer's keys and values [..., P, G, d], and the next cross layer's visual."""
        keys, values = (self.cross_attn or self.self_attn).keys_values(self.input_layernorm(visual))
        cos, sin = place
        keys = rotate(keys, (cos.unsqueeze(1), sin.unsqueeze(1)))
        if self.visual_ffn is not None and self.visual_norm is not None:
            visual = visual + self._gate(self.gate_visual) * self.visual_ffn(self.visual_norm(visual))
        return (keys, values), visual

    def forward(self, hidden: Tensor, text: Text, looks: Sequence[tuple[Sight, KeysValues]] = ()) -> Tensor:
        """hidden [B, T, D] -> [B, T, D]; `looks` are this layer's reads of the frames."""
        if looks:
            hidden = hidden + self._gate(self.gate_cross) * self._look(self.input_layernorm(hidden), looks)
        attention = self.self_attn
        x = self.input_layernorm(hidden)
        query = rotate(attention.queries(x), text.turn)
        keys, values = (part.transpose(1, 2) for part in attention.keys_values(x))
        keys = rotate(keys, text.turn)
        if text.state is not None:
            keys, values = text.state.extend(self.index, keys, values)
        hidden = hidden + attention.output(self_attention(query, keys, values, text.mask))
        return hidden + self.mlp(self.post_attention_layernorm(hidden))

    def _look(self, x: Tensor, looks: Sequence[tuple[Sight, KeysValues]]) -> Tensor:
        attention = self.cross_attn or self.self_attn
        query = attention.queries(x)
        if len(looks) == 1 and looks[0][0].rows is None:
            sight, (keys, values) = looks[0]
            return attention.output(sight.view.attend(query, keys, values))
        read = torch.zeros_like(query)
        for sight, (keys, values) in looks:
            assert sight.rows is not None
            read.index_copy_(
                0, sight.rows, sight.view.attend(query.index_select(0, sight.rows), keys, values)
            )
        return attention.output(read)

    def _gate(self, scale: nn.Parameter | None) -> Tensor:
        assert scale is not None
        return scale.tanh() if self.tanh else scale


class LanguageModel(nn.Module):
    """The Qwen2 part: parameters are named as Hugging Face names them, without its leading `model.`."""

    def __init__(self, config: StreamChatConfig) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Layer(config, index) for index in range(config.num_hidden_layers))
        self.norm = Norm(config.hidden_size, config.rms_norm_eps)
        tied = config.tie_word_embeddings
        self.lm_head = None if tied else nn.Linear(config.hidden_size, config.vocab_size, bias=False)


class StreamChat(nn.Module):
    """Vision encoder, adapter and language model."""

    def __init__(self, config: StreamChatConfig) -> None:
        """Random weights (the caller's seed); V-FFNs start as copies of the FFNs."""
        super().__init__()
        self.config = config
        self.vision = VisionTower(config.vision)
        self.adapter = nn.Sequential(
            nn.Linear(config.vision.hidden_size, config.hidden_size),
            nn.GELU(),
            nn.Linear(config.hidden_size, config.hidden_size),
        )
        self.language = LanguageModel(config)
        self.rope = Rope(head_dim=config.head_dim, theta=config.rope_theta, grid=config.vision.grid)
        self._start()

    def forward(
        self,
        token_ids: Tensor,
        text_index: Tensor,
        frame_features: Tensor,
        clip_of_row: Tensor,
        frame_index: Tensor,
        visible: Tensor,
        text_mask: Tensor | None = None,
    ) -> Tensor:
        """Logits of each position's next token, [B, T, vocabulary]; nothing is kept (training).

        Many rows may share a clip: its frames go through adapter and V-FFNs once, and each row has its own clock.

        Args:
            token_ids: int64 [B, T]; padding on the right is harmless.
            text_index: temporal indices [B, T] (`model.clock.indices`).
            frame_features: vision encoder's output [C, F, P, Dv].
            clip_of_row: int64 [B].
            frame_index: temporal index of each frame on its row's clock, [B, F].
            visible: bool [B, T, F], the frames of position i being those of token i + 1 (`model.clock.visibility`).
                A position that sees none gets nothing from the cross layers.
            text_mask: bool [B, T, T], what each position may read; None: all up to itself.
        """
        origin = text_index[:, :1]  # only differences matter, and small numbers turn most exactly
        sight = Sight(
            FrameView(
                self.rope,
                text_index - origin,
                frame_index - origin,
                visible,
                clip_of_row,
                dtype=self.dtype,
            ),
            self.visual_chain(frame_features),
        )
        return self.logits(self.read(token_ids, text_index - origin, [sight], text_mask=text_mask))

    @property
    def dtype(self) -> torch.dtype:
        """Of the language model; the vision encoder may have its own."""
        return self.language.embed_tokens.weight.dtype

    def visual_chain(self, features: Tensor) -> list[KeysValues]:
        """All that text ever reads of frames: features [..., P, Dv] -> per cross layer keys, values [..., P, G, d]."""
        visual = self.adapter(features.to(self.dtype))
        place = self.rope.place(features.device)
        chain: list[KeysValues] = []
        for index in self.config.cross_layers:
            keys_values, visual = self._layer(index).see(visual, place)
            chain.append(keys_values)
        return chain

    def read(
        self,
        token_ids: Tensor,
        text_index: Tensor,
        sights: Sequence[Sight],
        *,
        text_mask: Tensor | None = None,
        state: TextState | None = None,
    ) -> Tensor:
        """Final hidden states [B, T, D] of tokens [B, T], after what `state` holds (None: nothing came before)."""
        hidden = self.language.embed_tokens(token_ids)
        cos, sin = self.rope.turn(text_index)
        mask = state.mask if state is not None else None
        if text_mask is not None:
            mask = additive(text_mask, hidden.dtype)[0].unsqueeze(1)
        text = Text((cos.unsqueeze(1), sin.unsqueeze(1)), mask, state)
        cross = {layer: number for number, layer in enumerate(self.config.cross_layers)}
        for index, layer in enumerate(self.language.layers):
            number = cross.get(index)
            looks = [(sight, sight.keys_values[number]) for sight in sights] if number is not None else []
            hidden = layer(hidden, text, looks)
        return self.language.norm(hidden)

    def logits(self, hidden: Tensor) -> Tensor:
        """[..., D] -> [..., vocabulary]."""
        head = self.language.lm_head
        return linear(hidden, self.language.embed_tokens.weight if head is None else head.weight)

    def _layer(self, index: int) -> Layer:
        layer = self.language.layers[index]
        assert isinstance(layer, Layer)
        return layer

    def _start(self) -> None:
        """Linear layers keep torch's start, which suits any width; embeddings are as small as Qwen2's."""
        nn.init.normal_(self.language.embed_tokens.weight, std=0.02)
        for index in range(self.config.num_hidden_layers):
            layer = self._layer(index)
            for projection in (layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.v_proj):
                if projection.bias is not None:
                    nn.init.zeros_(projection.bias)
            layer.copy_experts()
