"""One layer of the network (paper, section 2.1): a Qwen2 layer, and what makes some of them cross layers.

With text states `hidden` [N, D] and visual states `visual` [..., P, D], a cross layer is

    hidden = hidden + gate_cross * CrossAttention(norm(hidden), norm(visual))   self-attention's own weights and norm
    visual = visual + gate_visual * visual_ffn(visual_norm(visual))             starts as a copy of this layer's FFN
    hidden = hidden + SelfAttention(norm(hidden))
    hidden = hidden + FFN(post_norm(hidden))

`run_layer` and `run_frame_layer` are its only definition. `Layer` computes their operations under autograd,
`model.runtime.packed_model` computes them in place.

Letters: N packed tokens, P visual tokens a frame, D the language model's width, I the FFN's width, H query heads,
G key/value heads, d head size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from model.config import StreamChatConfig
from model.network.attention import KeysValues
from model.network.norm import RMSNorm
from model.network.rope import rotate

QueryKeysValues = tuple[Tensor, Tensor, Tensor]  # [N, H, d], [N, G, d], [N, G, d]


class AttentionBackend(Protocol):
    """How packed tokens read what is around them: there is one for training, one for prefill and one for decode.

    It knows each token's position, and which text and which frames the token may see.
    """

    def rotate(self, query: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
        """query [N, H, d] and keys [N, G, d], rotated by the tokens' positions."""
        ...

    def attend_text(self, layer: int, query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Text to text: query [N, H, d], keys and values [N, G, d] of the same tokens -> [N, H * d]."""
        ...

    def attend_frames(self, cross: int, query: Tensor) -> Tensor:
        """Text to frames: query [N, H, d], not rotated -> [N, H * d]; `cross` counts cross layers."""
        ...


class VisualExpert(NamedTuple):
    """The V-FFN of a cross layer."""

    gate: Tensor  # [D]
    norm: Callable[[Tensor], Tensor]
    feed_forward: Callable[[Tensor], Tensor]


class LayerOperations(Protocol):
    """What a layer's weights compute for text. What they return may be memory that a later operation overwrites."""

    index: int
    cross: int | None  # which cross layer it is; None: it does not look at frames

    def input_layernorm(self, hidden: Tensor, /) -> Tensor: ...
    def frame_query(self, x: Tensor) -> Tensor: ...  # [N, D] -> [N, H, d]
    def add_cross_attention(self, hidden: Tensor, read: Tensor) -> Tensor: ...  # read [N, H * d], gated
    def query_keys_values(self, x: Tensor) -> QueryKeysValues: ...
    def add_self_attention(self, hidden: Tensor, read: Tensor) -> Tensor: ...
    def post_attention_layernorm(self, hidden: Tensor, /) -> Tensor: ...
    def add_feed_forward(self, hidden: Tensor, x: Tensor) -> Tensor: ...


class FrameOperations(Protocol):
    """What a cross layer's weights compute for frames."""

    def input_layernorm(self, visual: Tensor, /) -> Tensor: ...
    def frame_keys_values(self, x: Tensor) -> KeysValues: ...  # not rotated
    @property
    def visual_expert(self) -> VisualExpert | None: ...
    def forward_frames(self, visual: Tensor, rotation: Tensor) -> tuple[KeysValues, Tensor]: ...


def run_layer(layer: LayerOperations, hidden: Tensor, attention: AttentionBackend) -> Tensor:
    """Text states hidden [N, D] -> [N, D]."""
    if layer.cross is not None:
        query = layer.frame_query(layer.input_layernorm(hidden))
        hidden = layer.add_cross_attention(hidden, attention.attend_frames(layer.cross, query))
    query, keys, values = layer.query_keys_values(layer.input_layernorm(hidden))
    query, keys = attention.rotate(query, keys)
    hidden = layer.add_self_attention(hidden, attention.attend_text(layer.index, query, keys, values))
    return layer.add_feed_forward(hidden, layer.post_attention_layernorm(hidden))


def run_frame_layer(layer: FrameOperations, visual: Tensor, rotation: Tensor) -> tuple[KeysValues, Tensor]:
    """visual [..., P, D] -> this layer's keys and values [..., P, G, d], and the next cross layer's visual.

    `rotation` [2, P, 1, d]: by the visual tokens' (0, y, x).
    """
    keys, values = layer.frame_keys_values(layer.input_layernorm(visual))
    if (expert := layer.visual_expert) is not None:
        visual = torch.addcmul(visual, expert.gate, expert.feed_forward(expert.norm(visual)))
    return (rotate(keys, rotation), values), visual


def run_frame_layers(
    layers: Sequence[FrameOperations], visual: Tensor, rotation: Tensor
) -> Iterator[KeysValues]:
    """All that text ever reads of frames, one cross layer after the other: adapted frames visual [..., P, D]."""
    for layer in layers:
        keys_values, visual = layer.forward_frames(visual, rotation)
        yield keys_values


def swiglu(gate: Tensor, up: Tensor, *, in_place: bool = False) -> Tensor:
    """silu(gate) * up, [..., I]; `in_place`: written to `gate`."""
    return silu(gate, inplace=True).mul_(up) if in_place else silu(gate) * up


class FeedForward(nn.Module):
    """SwiGLU, for text (FFN) and for visual tokens (V-FFN)."""

    def __init__(self, config: StreamChatConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] -> [..., D]."""
        return self.down_proj(swiglu(self.gate_proj(x), self.up_proj(x)))


class AttentionProjections(nn.Module):
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

    def query(self, x: Tensor) -> Tensor:
        """[..., D] -> [..., H, d]."""
        return self.q_proj(x).unflatten(-1, (-1, self.head_dim))

    def keys_values(self, x: Tensor) -> KeysValues:
        """[..., D] -> keys and values, each [..., G, d]."""
        shape = (-1, self.head_dim)
        return self.k_proj(x).unflatten(-1, shape), self.v_proj(x).unflatten(-1, shape)


class Layer(nn.Module):
    """A Qwen2 layer; a cross layer has gates, a V-FFN unless it is the last one, and may have its own projections."""

    def __init__(self, config: StreamChatConfig, index: int) -> None:
        super().__init__()
        self.index = index
        self.cross: int | None = config.cross_layers.index(index) if index in config.cross_layers else None
        self.self_attn = AttentionProjections(config)
        self.mlp = FeedForward(config)
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.tanh = config.gate == "tanh"
        self.gate_cross: nn.Parameter | None = None
        self.gate_visual: nn.Parameter | None = None
        self.visual_ffn: FeedForward | None = None
        self.visual_norm: RMSNorm | None = None
        self.cross_attn: AttentionProjections | None = None
        if self.cross is None:
            return
        self.gate_cross = nn.Parameter(torch.full((config.hidden_size,), config.gate_init))
        if not config.share_attention_parameters:
            self.cross_attn = AttentionProjections(config)
        is_last = index == config.cross_layers[-1]  # no layer reads the visual states after it
        if config.visual_ffn and not is_last:
            self.gate_visual = nn.Parameter(torch.full((config.hidden_size,), config.gate_init))
            self.visual_ffn = FeedForward(config)
            self.visual_norm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def copy_experts(self) -> None:
        """Start what belongs to frames as copies of what belongs to text."""
        if self.cross_attn is not None:
            self.cross_attn.load_state_dict(self.self_attn.state_dict())
        if self.visual_ffn is not None and self.visual_norm is not None:
            self.visual_ffn.load_state_dict(self.mlp.state_dict())
            self.visual_norm.load_state_dict(self.post_attention_layernorm.state_dict())

    forward = run_layer
    forward_frames = run_frame_layer

    @property
    def cross_projections(self) -> AttentionProjections:
        """The projections of cross-attention."""
        return self.cross_attn or self.self_attn

    @property
    def cross_gate(self) -> Tensor | None:
        """What cross-attention's output is multiplied by, [D]; None: no cross layer."""
        return self._gate(self.gate_cross)

    @property
    def visual_expert(self) -> VisualExpert | None:
        gate = self._gate(self.gate_visual)
        if gate is None or self.visual_norm is None or self.visual_ffn is None:
            return None
        return VisualExpert(gate, self.visual_norm, self.visual_ffn)

    def frame_query(self, x: Tensor) -> Tensor:
        return self.cross_projections.query(x)

    def frame_keys_values(self, x: Tensor) -> KeysValues:
        return self.cross_projections.keys_values(x)

    def query_keys_values(self, x: Tensor) -> QueryKeysValues:
        return self.self_attn.query(x), *self.self_attn.keys_values(x)

    def add_cross_attention(self, hidden: Tensor, read: Tensor) -> Tensor:
        gate = self.cross_gate
        assert gate is not None
        return torch.addcmul(hidden, gate, self.cross_projections.o_proj(read))

    def add_self_attention(self, hidden: Tensor, read: Tensor) -> Tensor:
        return hidden + self.self_attn.o_proj(read)

    def add_feed_forward(self, hidden: Tensor, x: Tensor) -> Tensor:
        return hidden + self.mlp(x)

    def _gate(self, scale: Tensor | None) -> Tensor | None:
        return scale.tanh() if scale is not None and self.tanh else scale
