"""The network's weights as the engine uses them: what is always used together is one matrix.

Letters: N packed tokens, D width, I the FFN's width, H query heads, G key/value heads, d head size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from model.network.attention import KeysValues
from model.network.layer import FeedForward, Layer, VisualExpert, run_frame_layer, swiglu
from model.network.norm import InPlaceRMSNorm

Quantise = Callable[[Tensor], Tensor]  # a weight matrix becomes one that takes less memory


class Projection:
    """A linear layer's weight [out, in] and bias [out]."""

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        self.weight, self.bias = weight, bias
        plain = type(weight) in (Tensor, nn.Parameter)  # quantised tensors support only `linear`
        self._transposed = weight.t() if plain else None

    def __call__(self, x: Tensor, out: Tensor | None = None) -> Tensor:
        """[N, in] -> out [N, out], allocated if it is not given."""
        if out is None:
            return linear(x, self.weight, self.bias)
        if self._transposed is None:
            return out.copy_(linear(x, self.weight, self.bias))
        if self.bias is None:
            return torch.mm(x, self._transposed, out=out)
        return torch.addmm(self.bias, x, self._transposed, out=out)

    def add_to(self, out: Tensor, x: Tensor) -> Tensor:
        """x [N, in] is projected and added to out [N, out]. No bias."""
        if self._transposed is None:
            return out.add_(linear(x, self.weight))
        return out.addmm_(x, self._transposed)

    def quantised(self, quantise: Quantise) -> Projection:
        """The same with a weight of fewer bits."""
        return Projection(quantise(self.weight), self.bias)


def join(*parts: nn.Linear) -> Projection:
    """Several linear layers as one. Their own weights become views of it: no byte is kept twice."""
    biases = [bias for part in parts if (bias := _bias(part)) is not None]
    return Projection(_join([part.weight for part in parts]), _join(biases) if biases else None)


def _join(parameters: Sequence[Tensor]) -> Tensor:
    storages = {each.untyped_storage().data_ptr() for each in parameters}
    ends = [each.storage_offset() + each.numel() for each in parameters]
    if len(storages) == 1 and ends[:-1] == [
        each.storage_offset() for each in parameters[1:]
    ]:  # joined before
        shape = (sum(len(each) for each in parameters), *parameters[0].shape[1:])
        return parameters[0].detach().as_strided(shape, parameters[0].stride())
    with torch.inference_mode(False):  # they may be trained afterwards
        joined = torch.cat([parameter.detach() for parameter in parameters])
    for parameter, view in zip(parameters, joined.split([len(each) for each in parameters]), strict=True):
        parameter.data = view
    return joined


def _bias(part: nn.Linear) -> Tensor | None:
    """Its bias if it has one, which torch's own types do not know."""
    return part.bias


class PackedFeedForward:
    """SwiGLU, with one matrix for gate and up."""

    def __init__(self, own: FeedForward) -> None:
        self.gate_up, self.down = join(own.gate_proj, own.up_proj), join(own.down_proj)

    def __call__(self, x: Tensor) -> Tensor:
        """[N, D] -> [N, D]."""
        gate, up = self.gate_up(x).chunk(2, -1)
        return self.down(swiglu(gate, up, in_place=True))

    def quantise(self, quantise: Quantise) -> None:
        """Replace the weights by ones of fewer bits."""
        self.gate_up, self.down = self.gate_up.quantised(quantise), self.down.quantised(quantise)


class CrossWeights(NamedTuple):
    """The cross-attention of a layer."""

    query: Projection
    output: Projection
    gate: Tensor  # [D]
    frame_keys_values: Projection


class LayerWeights:
    """One layer's weights. Frames go through them as they are (`FrameOperations`), text through a `PackedLayer`."""

    forward_frames = run_frame_layer

    def __init__(self, layer: Layer, quantise: Quantise | None) -> None:
        """With `quantise`, `layer` loses the weights that are replaced."""
        own, across = layer.self_attn, layer.cross_projections
        self.index, self.cross, self._head_dim = layer.index, layer.cross, own.head_dim
        self.input_layernorm = InPlaceRMSNorm(layer.input_layernorm)
        self.post_attention_layernorm = InPlaceRMSNorm(layer.post_attention_layernorm)
        self.query_keys_values, self.output = join(own.q_proj, own.k_proj, own.v_proj), join(own.o_proj)
        self.mlp = PackedFeedForward(layer.mlp)
        self.cross_weights: CrossWeights | None = None
        if (gate := layer.cross_gate) is not None:
            frames = join(across.k_proj, across.v_proj)  # a view of the joined matrix if these are `own`
            self.cross_weights = CrossWeights(join(across.q_proj), join(across.o_proj), gate.detach(), frames)
        self.visual_expert: VisualExpert | None = None
        if (expert := layer.visual_expert) and layer.visual_norm and layer.visual_ffn:
            norm, feed_forward = InPlaceRMSNorm(layer.visual_norm), PackedFeedForward(layer.visual_ffn)
            self.visual_expert = VisualExpert(expert.gate.detach(), norm, feed_forward)
        if quantise is not None:
            self._quantise(layer, quantise)

    def frame_keys_values(self, x: Tensor) -> KeysValues:
        assert self.cross_weights is not None
        joined = self.cross_weights.frame_keys_values(x).unflatten(-1, (-1, self._head_dim))
        keys, values = joined.chunk(2, 1)
        return keys, values

    def _quantise(self, layer: Layer, quantise: Quantise) -> None:
        """Text's weights; the frames' stay. The module's own copies are freed."""
        if self.cross_weights is not None:
            query, output, gate, frames = self.cross_weights
            frames = frames.quantised(torch.clone)  # not the joined matrix that it may be a view of
            self.cross_weights = CrossWeights(
                query.quantised(quantise), output.quantised(quantise), gate, frames
            )
        self.query_keys_values = self.query_keys_values.quantised(quantise)
        self.output = self.output.quantised(quantise)
        self.mlp.quantise(quantise)
        unused = [*layer.self_attn.children(), *layer.cross_projections.children(), *layer.mlp.children()]
        for part in [each for each in unused if isinstance(each, nn.Linear)]:
            part.weight.data = part.weight.data.new_empty(0)
