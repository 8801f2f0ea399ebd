"""A cross layer's way for visual tokens, as the engine runs it: `Layer.see`, which tests hold it to, without modules.

Letters: N visual tokens, D width, G key/value heads, d head size.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import silu

from model.network.layer import KeysValues, Layer
from model.network.rope import Turn, TurnInPlace
from model.runtime.packed_model import Projection, Scale, joined, joined_view


class FrameLayer:
    """One layer's numbers, ready for frames."""

    def __init__(self, layer: Layer, keys_values: Projection) -> None:
        """`keys_values` makes both."""
        self._norm, self._keys_values = Scale(layer.input_layernorm), keys_values
        self._head_dim = layer.self_attn.head_dim
        self._last = layer.visual_ffn is None or layer.visual_norm is None or layer.gate_visual is None
        if layer.visual_ffn is None or layer.visual_norm is None or layer.gate_visual is None:
            return
        own = layer.visual_ffn
        self._visual_norm = Scale(layer.visual_norm)
        self._gate_up, self._down = joined(own.gate_proj, own.up_proj), joined_view(own.down_proj)
        self._gate = (layer.gate_visual.tanh() if layer.tanh else layer.gate_visual).detach()

    def see(self, visual: Tensor, place: Turn) -> tuple[KeysValues, Tensor]:
        """visual [N, D] -> keys and values, each [N, G, d], and the next cross layer's visual.

        `place`: cos and sin of whole heads, [N, 1, d].
        """
        both = self._keys_values(self._norm(visual)).unflatten(-1, (-1, self._head_dim))
        keys, values = both.chunk(2, 1)
        TurnInPlace(keys, *place)()
        if self._last:
            return (keys, values), visual
        gate, up = self._gate_up(self._visual_norm(visual)).chunk(2, -1)
        made = self._down(silu(gate, inplace=True).mul_(up))
        return (keys, values), torch.addcmul(visual, self._gate, made)
