"""One layer of the network (paper, section 2.1): a Qwen2 layer, and what makes some of them cross layers.

Letters: B rows, T text tokens, L text keys, C clips, F frames of a clip, P visual tokens a frame, D the language
model's width, H query heads, G key/value heads, d head size.

One cross layer, with text states `hidden` [B, T, D] and visual states `visual` [..., P, D]:

    hidden = hidden + gate_cross * CrossAttention(norm(hidden), norm(visual))   self-attention's own weights and norm
    visual = visual + gate_visual * visual_ffn(visual_norm(visual))             starts as a copy of this layer's FFN
    hidden = hidden + SelfAttention(norm(hidden))
    hidden = hidden + FFN(post_norm(hidden))
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import rms_norm, silu

from model.config import StreamChatConfig
from model.network.attention import FrameView, self_attention
from model.network.rope import Turn, rotate

KeysValues = tuple[Tensor, Tensor]  # of one cross layer, each [..., P, G, d]; keys turned by (0, y, x)


@dataclass(frozen=True, slots=True)
class Whole:
    """What whole texts read: all of them and their clips are here (training)."""

    turn: Turn  # [B, 1, T, d/2]
    mask: Tensor | None  # see `self_attention`
    view: FrameView
    chain: Sequence[KeysValues]  # of the clips, [C, F, P, G, d] per cross layer

    def attend(self, query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Text to text: query [B, H, T, d], and the same tokens' keys and values [B, G, T, d] -> [B, H, T, d]."""
        return self_attention(query, keys, values, self.mask)

    def look(self, cross: int, query: Tensor) -> Tensor:
        """Text to frames: query [B, H, T, d], not yet turned -> [B, H, T, d]; `cross` counts cross layers."""
        return self.view.attend(query, *self.chain[cross])


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

    def turned(self, x: Tensor, turn: Turn) -> tuple[Tensor, Tensor, Tensor]:
        """[B, T, D] -> queries [B, H, T, d], keys and values [B, G, T, d], the first two turned."""
        keys, values = (part.transpose(1, 2) for part in self.keys_values(x))
        return rotate(self.queries(x), turn), rotate(keys, turn), values

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
        self.cross = index // config.cross_attention_every  # which of the cross layers it is, if it is one
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

    def forward(self, hidden: Tensor, reader: Whole) -> Tensor:
        """hidden [B, T, D] -> [B, T, D]."""
        if self.gate_cross is not None:
            cross = self.cross_attn or self.self_attn
            read = reader.look(self.cross, cross.queries(self.input_layernorm(hidden)))
            hidden = torch.addcmul(hidden, self._gate(self.gate_cross), cross.output(read))
        query, keys, values = self.self_attn.turned(self.input_layernorm(hidden), reader.turn)
        hidden = hidden + self.self_attn.output(reader.attend(query, keys, values))
        return hidden + self.mlp(self.post_attention_layernorm(hidden))

    def _gate(self, scale: nn.Parameter | None) -> Tensor:
        assert scale is not None
        return scale.tanh() if self.tanh else scale
