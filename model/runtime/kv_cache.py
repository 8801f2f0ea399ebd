"""What lasts between steps, apart from the weights: a ring of frames per camera, and pages of the dialogs' text.

All tensors are made once, at the start. Who may use which part of them is decided by `model.engine.pages`.

Letters: F frames, P visual tokens a frame, G key/value heads, d head size, S text tokens a page.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from model.config import StreamChatConfig
from model.engine.pages import PagePool, camera_bytes, ring_shape, token_bytes
from model.network.attention import KeysValues


class FrameKVCache:
    """Keys and values of all rings' frames, computed once, read by all dialogs. A page holds a ring."""

    def __init__(
        self, config: StreamChatConfig, num_rings: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.pages, self.device = PagePool(num_rings, camera_bytes(config, dtype.itemsize)), device
        shape = (num_rings, *ring_shape(config))
        self.layers: list[KeysValues] = [
            (_allocate(shape, dtype, device), _allocate(shape, dtype, device)) for _ in config.cross_layers
        ]  # each [rings, G, F, P, d]

    @torch.inference_mode()
    def write(self, page: int, slot: int, frame: Sequence[KeysValues]) -> None:
        """Keep a frame's keys and values, [P, G, d] per cross layer."""
        for (all_keys, all_values), (keys, values) in zip(self.layers, frame, strict=True):
            all_keys[page, :, slot] = keys.transpose(0, 1)
            all_values[page, :, slot] = values.transpose(0, 1)

    @torch.inference_mode()
    def copy(self, page: int, target: int) -> None:
        """Copy a ring's keys and values to another page."""
        for keys, values in self.layers:
            keys[target] = keys[page]
            values[target] = values[page]


class TextKVCache:
    """Keys and values of all dialogs' text, in pages of S tokens."""

    def __init__(
        self,
        config: StreamChatConfig,
        num_pages: int,
        page_tokens: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.pages = PagePool(num_pages, page_tokens * token_bytes(config, dtype.itemsize))
        self.page_tokens, self.device = page_tokens, device
        self.num_groups = config.num_key_value_heads
        shape = (2, num_pages, self.num_groups, page_tokens, config.head_dim)
        joined = [_allocate(shape, dtype, device) for _ in range(config.num_hidden_layers)]
        self.layers: list[KeysValues] = [(keys, values) for keys, values in joined]  # each [pages, G, S, d]
        self._joined = joined  # each [2, pages, G, S, d]
        self._lines = [each.flatten(0, 3) for each in joined]  # [2 * pages * G * S, d]
        groups = np.arange(self.num_groups) * page_tokens
        self._line_offsets = np.concatenate([groups, groups + num_pages * self.num_groups * page_tokens])

    def lines(self, pages: npt.NDArray[np.int64], offsets: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """The cache lines of N tokens' keys and values, [N, 2 * G], by their pages and the offsets there, both [N]."""
        first = pages * (self.num_groups * self.page_tokens) + offsets
        return first[:, None] + self._line_offsets

    @torch.inference_mode()
    def clear(self, page: int) -> None:
        """Set a page to zeros."""
        for keys_values in self._joined:
            keys_values[:, page].zero_()

    def write(self, layer: int, lines: Tensor, keys_values: Tensor) -> None:
        """keys_values [N, 2 * G, d] -> cache lines `lines` [N, 2 * G]."""
        self._lines[layer].index_put_((lines,), keys_values)


def _allocate(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Zeros. A CPU's memory is reserved now and taken page by page when it is first written."""
    if device.type != "cpu":
        return torch.zeros(*shape, dtype=dtype, device=device)
    reserved = np.zeros(math.prod(shape) * dtype.itemsize, np.uint8)
    return torch.from_numpy(reserved).view(dtype).view(*shape)
