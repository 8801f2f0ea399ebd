"""What lasts between steps, apart from the weights: a ring of frames per camera, and pages of the dialogs' text.

All tensors are made once, at the start. Who may use which part of them is decided by `model.engine.pages`.

Letters: F frames, P visual tokens a frame, G key/value heads, d head size, S text tokens a page.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from model.config import StreamChatConfig
from model.engine.pages import Pages, ring_shape
from model.engine.retention import Retention
from model.network.layer import KeysValues


@dataclass(frozen=True, slots=True)
class SeenFrame:
    """Who a frame in a ring is."""

    frame_id: str
    captured_s: float
    number: int  # how many frames of this camera came before it: what masks are made of, never slots


class FrameRing:
    """Which frames of a camera lie where: F of them, by default the newest. A slot is only where a frame lies.

    What may be seen is decided by the frames' numbers.
    """

    def __init__(self, place: int, retention: Retention) -> None:
        """`place`: the ring's page in the frame store."""
        self.place, self.retention, self.capacity = place, retention, retention.capacity
        self.frames: list[SeenFrame | None] = [None] * self.capacity  # by slot
        self.num_arrived = 0
        self.num_users = 0  # dialogs that look at it, of a ring that no camera fills
        self._order: list[int] = []  # slots, oldest frame first
        self.snapshot: FrameRing | None = None  # of this very moment

    @property
    def newest(self) -> SeenFrame | None:
        """The frame that came last."""
        return self.frames[self._order[-1]] if self._order else None

    @property
    def full(self) -> bool:
        """Whether a next frame makes another one leave."""
        return len(self._order) == self.capacity

    def in_order(self) -> list[tuple[int, SeenFrame]]:
        """Slots and frames, oldest first."""
        return [(slot, frame) for slot in self._order if (frame := self.frames[slot]) is not None]

    def add(self, frame_id: str, captured_s: float) -> int:
        """The newest frame comes; returns its slot, that of the frame which makes way."""
        if self.full:
            slot = self._order.pop(self.retention.surplus([frame.captured_s for _, frame in self.in_order()]))
        else:
            slot = len(self._order)
        self._order.append(slot)
        self.frames[slot] = SeenFrame(frame_id, captured_s, self.num_arrived)
        self.num_arrived += 1
        self.snapshot = None
        return slot

    def copy_to(self, place: int) -> FrameRing:
        """The same frames at another place of the store (whoever asks copies the numbers there)."""
        copy = FrameRing(place, self.retention)
        copy.frames, copy.num_arrived, copy._order = list(self.frames), self.num_arrived, list(self._order)
        return copy


class FrameStore:
    """Keys and values of all rings' frames, computed once, read by all dialogs. A page holds a ring."""

    def __init__(
        self, config: StreamChatConfig, num_rings: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.pages, self.device = Pages(num_rings), device
        shape = (num_rings, *ring_shape(config))
        self.layers: list[KeysValues] = [
            (_lasting(shape, dtype, device), _lasting(shape, dtype, device)) for _ in config.cross_layers
        ]  # each [rings, G, F, P, d]

    def write(self, place: int, slot: int, chain: Sequence[KeysValues]) -> None:
        """A frame's chain, [P, G, d] per cross layer."""
        for (all_keys, all_values), (keys, values) in zip(self.layers, chain, strict=True):
            all_keys[place, :, slot] = keys.transpose(0, 1)
            all_values[place, :, slot] = values.transpose(0, 1)

    def copy(self, place: int, target: int) -> None:
        """All of a ring's numbers."""
        for keys, values in self.layers:
            keys[target] = keys[place]
            values[target] = values[place]


class TextStore:
    """Keys and values of all dialogs' text, in pages of S tokens."""

    def __init__(
        self,
        config: StreamChatConfig,
        num_pages: int,
        page_tokens: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.pages, self.page_tokens, self.device = Pages(num_pages), page_tokens, device
        self.num_groups = config.num_key_value_heads
        shape = (2, num_pages, self.num_groups, page_tokens, config.head_dim)
        whole = [_lasting(shape, dtype, device) for _ in range(config.num_hidden_layers)]
        self.layers: list[KeysValues] = [(keys, values) for keys, values in whole]  # each [pages, G, S, d]
        self._lines = [each.flatten(0, 3) for each in whole]  # [2 * pages * G * S, d]
        groups = np.arange(self.num_groups) * page_tokens
        self._parts = np.concatenate([groups, groups + num_pages * self.num_groups * page_tokens])

    def lines(self, pages: npt.NDArray[np.int64], offsets: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Where the keys and values of N tokens lie, [N, 2 * G], by their pages and the offsets there, both [N]."""
        first = pages * (self.num_groups * self.page_tokens) + offsets
        return first[:, None] + self._parts

    def write(self, layer: int, lines: Tensor, keys_values: Tensor) -> None:
        """keys_values [N, 2 * G, d] go to `lines` [N, 2 * G]."""
        self._lines[layer].index_put_((lines,), keys_values)


def _lasting(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Zeros. On a CPU their memory is promised now and taken page by page when it is first written."""
    if device.type != "cpu":
        return torch.zeros(*shape, dtype=dtype, device=device)
    promised = np.zeros(math.prod(shape) * dtype.itemsize, np.uint8)
    return torch.from_numpy(promised).view(dtype).view(*shape)
