"""What lasts between steps, apart from the weights: a ring of frames per camera, and the text of every dialog.

Letters: B rows, T new text tokens, L text keys, F frames, P visual tokens a frame, G key/value heads, d head size.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from model.config import StreamChatConfig
from model.layer import KeysValues

TEXT_CHUNK = 128  # tokens by which the text cache grows


@dataclass(frozen=True, slots=True)
class SeenFrame:
    """Who a frame in a ring is."""

    frame_id: str
    captured_s: float
    number: int  # how many frames of this camera came before it: what masks are made of, never slots


class FrameRing:
    """The newest F frames of a camera: keys and values of each cross layer, computed once, read by all dialogs.

    A slot is only where a frame lies. What may be seen is decided by the frames' numbers.
    """

    def __init__(self, config: StreamChatConfig, dtype: torch.dtype, device: torch.device) -> None:
        self.capacity = config.fifo_frames
        self.frames: list[SeenFrame | None] = [None] * self.capacity  # by slot
        self.num_arrived = 0
        shape = (config.num_key_value_heads, self.capacity, config.vision.num_visual_tokens, config.head_dim)
        self._store = torch.zeros(len(config.cross_layers), 2, *shape, dtype=dtype, device=device)
        self._snapshot: FrameRing | None = None

    @property
    def keys_values(self) -> list[KeysValues]:
        """Per cross layer, keys and values as [1, F, P, G, d] (views; keys turned by (0, y, x) only)."""
        return [(keys, values) for keys, values in self._store.permute(0, 1, 3, 4, 2, 5).unsqueeze(2)]

    @property
    def newest(self) -> SeenFrame | None:
        """The frame that came last."""
        return self.frames[(self.num_arrived - 1) % self.capacity]

    def in_order(self) -> list[tuple[int, SeenFrame]]:
        """Slots and frames, oldest first."""
        slots = (
            number % self.capacity for number in range(self.num_arrived, self.num_arrived + self.capacity)
        )
        return [(slot, frame) for slot in slots if (frame := self.frames[slot]) is not None]

    def add(self, frame_id: str, captured_s: float, chain: list[KeysValues]) -> int:
        """Take the newest frame, whose chain is [P, G, d] per cross layer; returns its slot, the oldest one's."""
        slot = self.num_arrived % self.capacity
        for store, (keys, values) in zip(self._store, chain, strict=True):
            store[0, :, slot] = keys.transpose(0, 1)
            store[1, :, slot] = values.transpose(0, 1)
        self.frames[slot] = SeenFrame(frame_id, captured_s, self.num_arrived)
        self.num_arrived += 1
        self._snapshot = None
        return slot

    def snapshot(self) -> FrameRing:
        """This ring as it is now, for dialogs that do not look again; one copy for all who ask at the same frame."""
        if self._snapshot is None:
            copy = FrameRing.__new__(FrameRing)
            copy.capacity, copy.num_arrived = self.capacity, self.num_arrived
            copy.frames, copy._store, copy._snapshot = list(self.frames), self._store.clone(), None
            self._snapshot = copy
        return self._snapshot


class TextCache:
    """Keys and values of every dialog's text, a slot each. Slots are asked for, taken and given back.

    It grows by chunks of tokens and doubles its slots, up to the limits it is given.
    """

    def __init__(
        self, config: StreamChatConfig, dtype: torch.dtype, device: torch.device, *, max_dialogs: int
    ) -> None:
        self.max_dialogs, self.max_tokens = max_dialogs, config.max_position_embeddings
        self.lengths: dict[int, int] = {}  # tokens kept, by slot
        shape = (config.num_key_value_heads, TEXT_CHUNK, config.head_dim)
        self._store = torch.zeros(config.num_hidden_layers, 2, 1, *shape, dtype=dtype, device=device)

    def take(self) -> int | None:
        """A free slot, the lowest one so that steps read one block; None if all are taken."""
        slot = next((slot for slot in range(self.max_dialogs) if slot not in self.lengths), None)
        if slot is not None:
            self._grow(slot + 1, 1)
            self.lengths[slot] = 0
        return slot

    def give_back(self, slot: int) -> None:
        """Free a slot and forget what it holds: masked numbers must be finite, or they would show."""
        del self.lengths[slot]
        self._store[:, :, slot] = 0

    def reading(self, slots: list[int], num_new: int) -> TextReading:
        """What a forward needs that reads `num_new` tokens for each slot; slots rise."""
        self._grow(0, max(self.lengths[slot] for slot in slots) + num_new)
        return TextReading(self._store, slots, [self.lengths[slot] for slot in slots], num_new)

    def _grow(self, num_slots: int, num_tokens: int) -> None:
        layers, two, old_slots, groups, old_tokens, head_dim = self._store.shape
        new_slots, new_tokens = old_slots, old_tokens
        while new_slots < num_slots:
            new_slots *= 2
        while new_tokens < num_tokens:
            new_tokens += max(TEXT_CHUNK, old_tokens // 2)
        if (new_slots, new_tokens) == (old_slots, old_tokens):
            return
        store = self._store.new_zeros(layers, two, new_slots, groups, new_tokens, head_dim)
        store[:, :, :old_slots, :, :old_tokens] = self._store
        self._store = store


class TextReading:
    """One forward's way into the text cache: a `TextState` of the network.

    Either one row reads several tokens (a prompt), or each of several rows reads one (a step).
    """

    def __init__(self, store: Tensor, slots: list[int], starts: list[int], num_new: int) -> None:
        assert len(slots) == 1 or num_new == 1
        self._store, self._slots, self._starts, self._num_new = store, slots, starts, num_new
        self._length = max(starts) + num_new
        first = slots[0]
        self._block = slice(first, first + len(slots)) if slots[-1] - first + 1 == len(slots) else None
        self._where = torch.tensor(slots, device=store.device)
        self._ends = torch.tensor(starts, device=store.device)
        self.mask = self._mask()

    def _mask(self) -> Tensor | None:
        if self._num_new > 1 and self._starts[0] == 0:
            return None
        if self._num_new == 1 and len(set(self._starts)) == 1:
            return None
        key = torch.arange(self._length, device=self._store.device)
        last = self._ends[:, None] + torch.arange(self._num_new, device=self._store.device)  # [B, T]
        hidden = key > last[:, None, :, None]
        mask = torch.zeros(hidden.shape, dtype=self._store.dtype, device=self._store.device)
        return mask.masked_fill_(hidden, -torch.inf)

    def extend(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Keep keys and values [B, G, T, d]; returns each row's text so far, [B, G, L, d]."""
        return self._extend(self._store[layer, 0], keys), self._extend(self._store[layer, 1], values)

    def _extend(self, store: Tensor, new: Tensor) -> Tensor:
        if len(self._slots) == 1:
            store[self._slots[0], :, self._starts[0] : self._length] = new[0]
        else:
            store[self._where, :, self._ends] = new[:, :, 0]
        if self._block is not None:
            return store[self._block, :, : self._length]
        return store[:, :, : self._length].index_select(0, self._where)
