"""Attention: text to text, and text to frames.

Letters: B rows, T text tokens, L text keys, C clips, F frames of a clip, W frames that some token of a row sees,
P visual tokens a frame, H query heads, G key/value heads, d head size.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from functools import cache
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from model.network.rope import Rope, rotate


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
    """Text to text: query [B, H, T, d], keys and values [B, G, L, d] -> [B, H, T, d].

    `mask` is additive, [B, 1, T, L]; None means causal when T = L, and everything visible when T = 1.
    """
    num_tokens = query.shape[2]
    causal = mask is None and num_tokens > 1
    assert not causal or num_tokens == keys.shape[2]
    if causal and query.is_cuda and query.dtype in (torch.float16, torch.bfloat16) and (flash := _flash()):
        heads_last = (part.transpose(1, 2) for part in (query, keys, values))
        return flash(*heads_last, causal=True).transpose(1, 2)
    return _fused(query, keys, values, attn_mask=mask, is_causal=causal)


def _fused(query: Tensor, keys: Tensor, values: Tensor, **how: Any) -> Tensor:
    """Torch's attention; under autocast on a CPU in float32, which is faster there."""
    if not torch.is_autocast_enabled("cpu"):
        return scaled_dot_product_attention(query, keys, values, enable_gqa=True, **how)
    with torch.autocast("cpu", enabled=False):
        return scaled_dot_product_attention(
            query.float(), keys.float(), values.float(), enable_gqa=True, **how
        )


def additive(visible: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """A bool mask [..., keys] as numbers to add to scores, and which queries see anything [...].

    A query that sees nothing gets an even mask, so that neither its output nor any gradient is NaN: whoever cares
    multiplies its output by the second answer.
    """
    sees = visible.any(-1)
    hidden = ~visible & sees.unsqueeze(-1)
    return torch.zeros(visible.shape, dtype=dtype, device=visible.device).masked_fill_(
        hidden, -torch.inf
    ), sees


class FrameView:
    """What some rows see of some clips' frames: made once per forward, used by each cross layer.

    Keys are kept turned by (0, y, x) only. The rest of the rotation, p - f, is relative, so either side can carry it:
    - "keys": keys are turned by f for each row, queries by p, and fused attention does the rest. For many tokens.
    - "queries": the query is turned by p - f for each frame, and keys are read as they lie, so rows that look at one
      clip share its one copy. For decoding, where there is one query and many keys.
    """

    def __init__(
        self,
        rope: Rope,
        text_index: Tensor,
        frame_index: Tensor,
        visible: Tensor,
        clip_of_row: Tensor | None = None,
        *,
        turn: Literal["keys", "queries"] | None = None,
        dtype: torch.dtype = torch.float32,
        flex: bool = False,
    ) -> None:
        """text_index [B, T], frame_index [B, F], visible bool [B, T, F], clip_of_row [B] (None: all see clip 0).

        `turn` None chooses by T. `dtype` is the model's. `flex`: with "keys", FlexAttention instead of a whole mask.
        """
        self.flex = flex
        alone = clip_of_row is None
        self.turn = turn or ("queries" if alone and text_index.shape[1] == 1 else "keys")
        assert alone or self.turn == "keys", "rows of several clips share no keys"
        if self.turn == "queries":
            self._query_turn = rope.turn(
                text_index.unsqueeze(-1) - frame_index.unsqueeze(1)
            )  # [B, T, F, d/2]
            mask, sees = additive(visible, torch.float32)
            self._mask = mask.permute(2, 0, 1)[:, :, None, :, None]  # [F, B, 1, T, 1]
        else:
            self._crop(rope, text_index, frame_index, visible, clip_of_row)
            mask, sees = additive(self._visible, dtype)
            self._mask = mask[:, None]  # [B, 1, T, W]
        self._sees = sees[:, None, :, None].to(dtype)

    def _crop(
        self, rope: Rope, text_index: Tensor, frame_index: Tensor, visible: Tensor, clip_of_row: Tensor | None
    ) -> None:
        """Keep, of each row's frames, the W around those that some token of it sees: the others cost nothing."""
        num_rows, num_frames = frame_index.shape
        seen = visible.any(1)
        number = torch.arange(num_frames, device=seen.device)
        last = torch.where(seen, number, -1).amax(1)
        first = torch.where(seen, number, num_frames).amin(1)
        width = max(int((last - first).max()) + 1, 1)
        first = first.clamp(max=num_frames - width).unsqueeze(1)
        frames = first + torch.arange(width, device=seen.device)  # [B, W]
        self._visible = visible.gather(2, frames.unsqueeze(1).expand(-1, visible.shape[1], -1))
        clips = clip_of_row.unsqueeze(1) if clip_of_row is not None else 0
        self._frames = (clips * num_frames + frames).flatten()
        self._rows = num_rows
        cos, sin = rope.turn(frame_index.gather(1, frames))
        self._key_turn = cos[:, :, None, None], sin[:, :, None, None]  # [B, W, 1, 1, d/2]
        cos, sin = rope.turn(text_index)
        self._text_turn = cos.unsqueeze(1), sin.unsqueeze(1)  # [B, 1, T, d/2]
        self._wide_mask: Tensor | None = None
        self._block_mask: Any = None

    def attend(self, query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """query [B, H, T, d], not yet turned; keys and values [C, F, P, G, d] of one layer -> [B, H, T, d].

        A token that sees no frame gets zero.
        """
        out = (self._by_queries if self.turn == "queries" else self._by_keys)(query, keys, values)
        return out * self._sees

    def _by_keys(self, query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        num_patches, num_groups, head_dim = keys.shape[2:]
        picked = (self._rows, -1, num_patches, num_groups, head_dim)
        flat = (self._rows, -1, num_groups, head_dim)
        row_keys = rotate(keys.flatten(0, 1).index_select(0, self._frames).view(picked), self._key_turn)
        row_values = values.flatten(0, 1).index_select(0, self._frames)
        turned = rotate(query, self._text_turn)
        row_keys, row_values = row_keys.view(flat).transpose(1, 2), row_values.view(flat).transpose(1, 2)
        if self.flex:
            return self._staircase(turned, row_keys, row_values, num_patches)
        if self._wide_mask is None:
            self._wide_mask = self._mask.repeat_interleave(num_patches, -1)  # [B, 1, T, W * P]
        return _fused(turned, row_keys, row_values, attn_mask=self._wide_mask)

    def _staircase(self, query: Tensor, keys: Tensor, values: Tensor, num_patches: int) -> Tensor:
        """The same without a mask in memory: query [B, H, T, d], keys and values [B, G, W * P, d] -> [B, H, T, d]."""
        visible = self._visible

        def shown(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
            return visible[b, q, k // num_patches]

        if self._block_mask is None:
            sizes = (query.shape[0], None, query.shape[2], keys.shape[2])
            self._block_mask = _flex_module().create_block_mask(shown, *sizes, device=query.device)
        # On a CPU there is no kernel to compile: the reference shows that the masks are the same.
        attend = _flex() if query.is_cuda else _flex_module().flex_attention
        return attend(query, keys, values, block_mask=self._block_mask, enable_gqa=True)

    def _by_queries(self, query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        num_rows, num_heads, num_tokens, head_dim = query.shape
        _, num_frames, _, num_groups, _ = keys.shape
        shape = (num_groups, num_frames, num_rows, num_heads // num_groups, num_tokens)
        turned = query.view(num_rows, num_groups, -1, 1, num_tokens, head_dim).permute(1, 3, 0, 2, 4, 5)
        cos, sin = (part.permute(2, 0, 1, 3).unsqueeze(2) for part in self._query_turn)  # [F, B, 1, T, d/2]
        turned = rotate(turned.expand(*shape, head_dim), (cos, sin)).flatten(2, 4)  # [G, F, rest, d]
        scores = turned @ keys[0].permute(2, 0, 3, 1)  # [G, F, rest, P]
        scores = scores.view(*shape, -1).float().mul(head_dim**-0.5).add(self._mask)
        joint = scores.movedim(1, -2).flatten(-2).softmax(-1)  # [G, B, H/G, T, F * P]
        read = joint.to(values.dtype).flatten(1, 3) @ values[0].permute(2, 0, 1, 3).flatten(1, 2)
        read = read.view(num_groups, num_rows, -1, num_tokens, head_dim).transpose(0, 1)
        return read.reshape(num_rows, num_heads, num_tokens, head_dim)
