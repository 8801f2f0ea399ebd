"""Decode: one token for each of some dialogs.

Where things lie is worked out, and all memory is allocated, once for the same dialogs. A step is made again only when
the dialogs or their layout have changed. Running it is arithmetic on memory that stays.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from model.engine.dialog import Dialog
from model.network.rope import in_table
from model.runtime.batch_layout import HostDeviceTensor
from model.runtime.cuda_graph import GraphRunner, capture_graph
from model.runtime.frame_attention import DecodeFrameAttention
from model.runtime.kv_cache import FrameKVCache, TextKVCache
from model.runtime.packed_model import PackedModel
from model.runtime.text_attention import DecodeTextAttention


class DecodeStep:
    """A step of some dialogs, and its attention back end (`AttentionBackend`).

    The tensors that the back end is given are its buffers' own: what it does with them was prepared in advance.
    """

    def __init__(
        self, model: PackedModel, text: TextKVCache, frames: FrameKVCache, rows: Sequence[Dialog]
    ) -> None:
        self._model, self._rows = model, rows
        self._layout, self._lengths = self._layout_of(rows), [dialog.num_computed_tokens for dialog in rows]
        self.buffers = model.buffers(len(rows))
        self.rotate = self.buffers.rotate
        self._newest = HostDeviceTensor((2, len(rows)), text.device)  # tokens, and their positions
        self.buffers.token_ids, self._positions = self._newest.device
        self._text = DecodeTextAttention(text, rows, self.buffers)
        self._frames = DecodeFrameAttention(model.rope, frames, rows, self.buffers)
        self.logits = model.logits_buffer(len(rows))  # [N, V]
        self._graph = GraphRunner(capture_graph if text.device.type == "cuda" else None)
        self._advance()

    def advance(self, rows: Sequence[Dialog]) -> bool:
        """Prepare the same dialogs' next tokens; False if anything else has changed: a new step must be made."""
        lengths = [dialog.num_computed_tokens for dialog in rows]
        same = len(rows) == len(self._rows) and self._layout_of(rows) == self._layout
        if not same or any(not 0 <= new - old <= 1 for new, old in zip(lengths, self._lengths, strict=True)):
            return False
        self._lengths = lengths
        if not self._frames.advance():
            return False
        self._advance()
        return True

    @staticmethod
    def _layout_of(rows: Sequence[Dialog]) -> object:
        """What stays the same while the same turns go on on the same pages, to which tokens are only added."""
        return [
            (dialog, dialog.ring, dialog.turns[-1], dialog.dropped_tokens, len(dialog.pages))
            for dialog in rows
        ]

    def _advance(self) -> None:
        self._text.advance()
        self._newest.host[0] = [dialog.input_token_id for dialog in self._rows]
        self._newest.host[1] = positions = [dialog.last_temporal_index for dialog in self._rows]
        self._newest.copy_to_device()
        self._model.rope.write_rotation(self._positions, self.buffers.rotation, in_table=in_table(positions))

    def run(self) -> None:
        """Write `logits`."""
        self._graph(self._run)

    def _run(self) -> None:
        self._model.forward(self.buffers, self)
        self._model.logits(self.buffers, self.logits)

    def attend_text(self, layer: int, query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """See `AttentionBackend`."""
        return self._text.attend(layer)

    def attend_frames(self, cross: int, query: Tensor) -> Tensor:
        """See `AttentionBackend`."""
        return self._frames.attend(cross)
