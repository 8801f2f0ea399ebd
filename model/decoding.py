"""The network as the engine runs it: the same layers over packed tokens, from weights that lie together.

A step on a CPU is bound by how many small operations there are, not by what they compute: so no module is called
here, what is always used together is one product, and nothing is computed for a gradient. `model.layer` is what this
is held to, by tests.

Letters: N packed tokens, D width, H query heads, G key/value heads, d head size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, rms_norm, silu

from model.layer import Attention, Layer, Norm
from model.network import StreamChat
from model.rope import Turn, rotate

Quantise = Callable[[Tensor], Tensor]  # a weight matrix becomes one that takes less memory


class Reader(Protocol):
    """How packed tokens read what stands around them."""

    tokens: Tensor  # [N]
    turn: Turn  # [N, 1, d/2]

    def attend(self, layer: int, query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Text to text: query [N, H, d], and the same tokens' keys and values [N, G, d], kept -> [N, H, d]."""
        ...

    def look(self, cross: int, query: Tensor) -> Tensor:
        """Text to frames: query [N, H, d], not yet turned -> [N, H, d]; `cross` counts cross layers."""
        ...


@dataclass(frozen=True, slots=True)
class Projection:
    """A linear layer's numbers."""

    weight: Tensor
    bias: Tensor | None = None

    def __call__(self, x: Tensor) -> Tensor:
        """[N, in] -> [N, out]."""
        return linear(x, self.weight, self.bias)


def joined(*parts: nn.Linear) -> Projection:
    """Several layers' numbers as one, of which their own become views: no byte is kept twice."""

    def join(own: Sequence[Tensor]) -> Tensor:
        with torch.inference_mode(False):  # they may be trained afterwards
            whole = torch.cat([parameter.detach() for parameter in own])
        for parameter, view in zip(own, whole.split([len(each) for each in own]), strict=True):
            parameter.data = view
        return whole

    biases = [bias for part in parts if (bias := bias_of(part)) is not None]
    return Projection(join([part.weight for part in parts]), join(biases) if biases else None)


@dataclass(frozen=True, slots=True)
class Cross:
    """What a cross layer has more."""

    number: int  # among the cross layers
    query: Projection
    output: Projection
    gate: Tensor


class DecodingLayer:
    """One layer's numbers, ready for decoding."""

    def __init__(self, layer: Layer, quantise: Quantise | None) -> None:
        own, mlp = layer.self_attn, layer.mlp
        self._number, self._head_dim = layer.index, own.head_dim
        self._sizes = tuple(
            part.out_features // own.head_dim for part in (own.q_proj, own.k_proj, own.v_proj)
        )
        self._norm, self._post_norm = layer.input_layernorm, layer.post_attention_layernorm
        self._heads, self._output = joined(own.q_proj, own.k_proj, own.v_proj), joined_view(own.o_proj)
        self._gate_up, self._down = joined(mlp.gate_proj, mlp.up_proj), joined_view(mlp.down_proj)
        self._cross = None if layer.gate_cross is None else self._cross_of(layer, layer.cross_attn or own)
        if quantise is not None:
            self._quantise(layer, quantise)

    @staticmethod
    def _cross_of(layer: Layer, attention: Attention) -> Cross:
        assert layer.gate_cross is not None
        gate = layer.gate_cross.tanh() if layer.tanh else layer.gate_cross
        return Cross(layer.cross, joined_view(attention.q_proj), joined_view(attention.o_proj), gate.detach())

    def _quantise(self, layer: Layer, quantise: Quantise) -> None:
        """Text's weights; the frames' stay. The module's own copies of what is not needed for frames are let go."""

        def smaller(projection: Projection) -> Projection:
            return Projection(quantise(projection.weight), projection.bias)

        if self._cross is not None:
            cross = self._cross
            self._cross = Cross(cross.number, smaller(cross.query), smaller(cross.output), cross.gate)
            for part in (layer.self_attn.k_proj, layer.self_attn.v_proj):
                part.weight.data = part.weight.data.clone()  # frames need them, and nothing else of the whole
        self._heads, self._output = smaller(self._heads), smaller(self._output)
        self._gate_up, self._down = smaller(self._gate_up), smaller(self._down)
        gone = [layer.self_attn.q_proj, layer.self_attn.o_proj, *layer.mlp.children()]
        for part in [each for each in gone if isinstance(each, nn.Linear)]:
            part.weight.data = part.weight.data.new_empty(0)

    def __call__(self, hidden: Tensor, reader: Reader) -> Tensor:
        """hidden [N, D] -> [N, D]."""
        if (cross := self._cross) is not None:
            query = cross.query(normed(hidden, self._norm)).unflatten(-1, (-1, self._head_dim))
            read = cross.output(reader.look(cross.number, query).flatten(1))
            hidden = torch.addcmul(hidden, cross.gate, read)
        heads = self._heads(normed(hidden, self._norm)).view(len(hidden), -1, self._head_dim)
        num_turned = self._sizes[0] + self._sizes[1]
        query, keys = rotate(heads[:, :num_turned], reader.turn).split(self._sizes[:2], 1)
        read = reader.attend(self._number, query, keys, heads[:, num_turned:])
        hidden = hidden + self._output(read.flatten(1))
        gate, up = self._gate_up(normed(hidden, self._post_norm)).chunk(2, -1)
        return hidden + self._down(silu(gate).mul_(up))


def joined_view(part: nn.Linear) -> Projection:
    """A layer's numbers where they lie."""
    bias = bias_of(part)
    return Projection(part.weight.detach(), None if bias is None else bias.detach())


def bias_of(part: nn.Linear) -> Tensor | None:
    """Its bias if it has one, which torch's own types do not know."""
    return part.bias


def normed(x: Tensor, norm: Norm) -> Tensor:
    """RMSNorm; in float32 by fewer operations than torch's, which is made of many."""
    if x.dtype != torch.float32:
        return rms_norm(x, norm.weight.shape, norm.weight, norm.eps)
    length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    scale = length.square_().mul_(1 / x.shape[-1]).add_(norm.eps).rsqrt_()
    return (x * scale).mul_(norm.weight)


class Decoding:
    """The language model over packed tokens."""

    def __init__(self, model: StreamChat, quantise: Quantise | None = None) -> None:
        """Lays `model`'s weights together. With `quantise` it is used up: only the frames' way through it is left."""
        language = model.language
        self._embedding, self._norm = language.embed_tokens.weight.detach(), language.norm
        head = language.lm_head
        self._head = self._embedding if head is None else head.weight.detach()
        number = model.config.num_hidden_layers
        with torch.no_grad():
            self.layers = [DecodingLayer(model.layer(index), quantise) for index in range(number)]

    def read(self, reader: Reader) -> Tensor:
        """Final hidden states [N, D] of the reader's tokens."""
        hidden = self._embedding.index_select(0, reader.tokens)
        for layer in self.layers:
            hidden = layer(hidden, reader)
        return normed(hidden, self._norm)

    def logits(self, hidden: Tensor) -> Tensor:
        """[N, D] -> [N, vocabulary]."""
        return linear(hidden, self._head)
