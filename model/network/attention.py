"""Attention over whole texts and their clips: what training uses, and prefill for frames.

Letters: B rows, T text tokens of a row, N = B * T packed tokens, L text keys, M frames of all rows, F frames of a row,
W frames that some token of a row sees, P visual tokens a frame, H query heads, G key/value heads, d head size.
"""

from __future__ import annotations

import copy
import importlib
import importlib.util
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from model.network.rope import RotaryEmbedding, rotate

KeysValues = tuple[
    Tensor, Tensor
]  # of frames in one cross layer, each [..., P, G, d]; keys rotated by (0, y, x)


@cache
def _flash() -> Callable[..., Tensor] | None:
    """flash-attn's kernel where it is installed (the `gpu` extra)."""
    if importlib.util.find_spec("flash_attn") is None:
        return None
    return importlib.import_module("flash_attn").flash_attn_func


@cache
def _flex() -> Callable[..., Tensor]:
    """FlexAttention, compiled: one kernel that skips the blocks which no query of a block of queries may see."""
    return torch.compile(_flex_module().flex_attention, dynamic=True)


def _flex_module() -> Any:
    """Imported where it is used: it brings the compiler with it."""
    return importlib.import_module("torch.nn.attention.flex_attention")


def self_attention(query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
    """Text to text: query [B, T, H, d], keys and values [B, L, G, d] -> [B, T, H, d].

    `mask` is additive, [B, 1, T, L]; None means causal when T = L, and everything visible when T = 1.
    """
    num_tokens = query.shape[1]
    causal = mask is None and num_tokens > 1
    assert not causal or num_tokens == keys.shape[1]
    if causal and query.is_cuda and query.dtype in (torch.float16, torch.bfloat16) and (flash := _flash()):
        return flash(query, keys, values, causal=True)
    return _fused(query, keys, values, attn_mask=mask, is_causal=causal)


def _fused(query: Tensor, keys: Tensor, values: Tensor, **how: Any) -> Tensor:
    """Torch's attention, heads before the last dimension; under autocast on a CPU in float32: faster there."""
    query, keys, values = (part.transpose(1, 2) for part in (query, keys, values))
    if not torch.is_autocast_enabled("cpu"):
        out = scaled_dot_product_attention(query, keys, values, enable_gqa=True, **how)
    else:
        with torch.autocast("cpu", enabled=False):
            out = scaled_dot_product_attention(
                query.float(), keys.float(), values.float(), enable_gqa=True, **how
            )
    return out.transpose(1, 2)


def additive_mask(visible: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """A bool mask [..., keys] as numbers to add to scores, and which queries see anything [...].

    A query that sees nothing gets a mask of zeros, so that neither its output nor any gradient is NaN; its output must
    be multiplied by the second result.
    """
    sees = visible.any(-1)
    hidden = ~visible & sees.unsqueeze(-1)
    mask = torch.zeros(visible.shape, dtype=dtype, device=visible.device)
    return mask.masked_fill_(hidden, -torch.inf), sees


class FrameAttention:
    """Text to frames, for many tokens: made once per forward, used by each cross layer.

    Keys are kept rotated by (0, y, x) only. Here they are rotated by f for each row, and queries come rotated by p.
    """

    def __init__(
        self,
        rope: RotaryEmbedding,
        frame_index: Tensor,
        visible: Tensor,
        frames_of_row: Tensor | None = None,
        *,
        dtype: torch.dtype = torch.float32,
        flex: bool = False,
    ) -> None:
        """frame_index [B, F] on the rows' clocks, visible bool [B, T, F], frames_of_row [B, F] (None: 0 to F - 1).

        `dtype` is the model's. `flex`: FlexAttention instead of a whole mask.
        """
        frames = _seen_frames(visible)  # [B, W]
        self._picked = (frames if frames_of_row is None else frames_of_row.gather(1, frames)).flatten()
        self._num_rows = len(frame_index)
        self._visible = visible.gather(2, frames.unsqueeze(1).expand(-1, visible.shape[1], -1))  # [B, T, W]
        self._rotation = rope.rotation(frame_index.gather(1, frames))[
            :, :, :, None, None
        ]  # [2, B, W, 1, 1, d]
        mask, sees = additive_mask(self._visible, dtype)
        self._sees = sees[:, :, None, None].to(dtype)
        self._num_patches = rope.grid**2
        self._block_mask = self._make_block_mask() if flex else None
        self._mask = (
            None if flex else mask.repeat_interleave(self._num_patches, -1)[:, None]
        )  # [B, 1, T, W * P]

    def __call__(self, query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """query [B, T, H, d], rotated by p; keys and values [M, P, G, d] of one layer -> [B, T, H, d].

        A token that sees no frame gets zero.
        """
        if not self._visible.shape[2]:  # F = 0
            return torch.zeros_like(query)
        keys, values = (
            part.index_select(0, self._picked).unflatten(0, (self._num_rows, -1)) for part in (keys, values)
        )  # [B, W, P, G, d]
        keys, values = rotate(keys, self._rotation).flatten(1, 2), values.flatten(1, 2)
        if self._block_mask is None:
            return _fused(query, keys, values, attn_mask=self._mask) * self._sees
        # On a CPU there is no kernel to compile: the reference shows that the masks are the same.
        attend = _flex() if query.is_cuda else _flex_module().flex_attention
        heads_first = (part.transpose(1, 2) for part in (query, keys, values))
        out = attend(*heads_first, block_mask=self._block_mask, enable_gqa=True)
        return out.transpose(1, 2) * self._sees

    def _make_block_mask(self) -> Any:
        """The same mask without a score each in memory."""
        visible, num_patches = self._visible, self._num_patches

        def shown(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
            return visible[b, q, k // num_patches]

        sizes = (len(visible), None, visible.shape[1], visible.shape[2] * num_patches)
        return _flex_module().create_block_mask(shown, *sizes, device=visible.device)


def _seen_frames(visible: Tensor) -> Tensor:
    """Of each row's frames [B, T, F] the W around those that some token of it sees, [B, W]: the others cost nothing."""
    num_frames = visible.shape[2]
    if not num_frames:
        return torch.empty(len(visible), 0, dtype=torch.int64, device=visible.device)
    seen = visible.any(1)
    number = torch.arange(num_frames, device=seen.device)
    last = torch.where(seen, number, -1).amax(1)
    first = torch.where(seen, number, num_frames).amin(1)
    width = max(int((last - first).max()) + 1, 1)
    return first.clamp(max=num_frames - width).unsqueeze(1) + torch.arange(width, device=seen.device)


class TrainingAttention:
    """The back end for whole texts: all of them and their frames are here."""

    def __init__(
        self,
        rotation: Tensor,
        text_mask: Tensor | None,
        frames: FrameAttention,
        keys_values: KeysValues | None = None,
    ) -> None:
        """rotation [2, B, T, d], `text_mask` as in `self_attention`, `keys_values` of a layer: see `FrameAttention`."""
        self._shape = rotation.shape[1:3]
        self._rotation = rotation.flatten(1, 2).unsqueeze(2)  # [2, N, 1, d]
        self._text_mask, self._frames, self._keys_values = text_mask, frames, keys_values

    def of_layer(self, keys_values: KeysValues | None) -> TrainingAttention:
        """The same for a layer with these keys and values of the frames; None: it does not look at frames."""
        attention = copy.copy(self)
        attention._keys_values = keys_values
        return attention

    def rotate(self, query: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
        """query [N, H, d] and keys [N, G, d] of the texts' tokens, by their positions."""
        return rotate(query, self._rotation), rotate(keys, self._rotation)

    def attend_text(self, layer: int, query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """See `AttentionBackend`."""
        query, keys, values = (part.unflatten(0, self._shape) for part in (query, keys, values))
        return self_attention(query, keys, values, self._text_mask).flatten(2).flatten(0, 1)

    def attend_frames(self, cross: int, query: Tensor) -> Tensor:
        """See `AttentionBackend`. It is that of a layer already, so that all layers share a compiled graph."""
        assert self._keys_values is not None
        query = rotate(query, self._rotation).unflatten(0, self._shape)
        return self._frames(query, *self._keys_values).flatten(2).flatten(0, 1)
