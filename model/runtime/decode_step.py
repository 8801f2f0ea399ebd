"""One token for each of some dialogs.

Where things lie is worked out, and what is written on the way is made, once for the same dialogs; a step is made again
only when who speaks or where things lie has changed. Running one is arithmetic on memory that stays.
"""

from __future__ import annotations

from collections.abc import Sequence

from model.engine.dialog import Dialog
from model.network.rope import is_near
from model.runtime.batch_layout import Numbers
from model.runtime.cuda_graph import Replay, cuda_graph
from model.runtime.frame_attention import FrameRows
from model.runtime.kv_cache import FrameStore, TextStore
from model.runtime.packed_model import Decoding
from model.runtime.text_attention import TextRows


class Step:
    """See `Reader`."""

    def __init__(
        self, decoding: Decoding, text: TextStore, frames: FrameStore, rows: Sequence[Dialog]
    ) -> None:
        self._decoding, self._rows = decoding, rows
        self._where, self._lengths = self._places(rows), [dialog.num_computed_tokens for dialog in rows]
        self.buffers = decoding.buffers(len(rows))
        self._newest = Numbers((2, len(rows)), text.device)  # tokens, and their indices
        self.buffers.tokens, self._index = self._newest.device
        self._text = TextRows(text, rows, self.buffers)
        self._frames = FrameRows(decoding.rope, frames, rows, self.buffers)
        self.logits = decoding.logits_buffer(len(rows))  # [N, V]
        self.run = Replay(self._run, cuda_graph if text.device.type == "cuda" else None)  # writes `logits`
        self._advance()

    def advance(self, rows: Sequence[Dialog]) -> bool:
        """The same dialogs' next tokens; False if anything else has changed, and a new Step must be made."""
        lengths = [dialog.num_computed_tokens for dialog in rows]
        same = len(rows) == len(self._rows) and self._places(rows) == self._where
        if not same or any(not 0 <= new - old <= 1 for new, old in zip(lengths, self._lengths, strict=True)):
            return False
        self._lengths = lengths
        if not self._frames.advance():
            return False
        self._advance()
        return True

    @staticmethod
    def _places(rows: Sequence[Dialog]) -> object:
        """What stays the same while the same turns go on on the same pages: those are only added to."""
        return [
            (dialog, dialog.ring, dialog.turns[-1], dialog.dropped_tokens, len(dialog.pages))
            for dialog in rows
        ]

    def _advance(self) -> None:
        self._text.advance()
        self._newest.host[0] = [dialog.input_token_id for dialog in self._rows]
        self._newest.host[1] = index = [dialog.last_temporal_index for dialog in self._rows]
        self._newest.send()
        self._decoding.rope.turns(self._index, self.buffers.turns, near=is_near(index))

    def _run(self) -> None:
        self._decoding.read(self)
        self._decoding.logits(self, self.logits)

    def attend(self, layer: int) -> None:
        """See `TextRows.attend`."""
        self._text.attend(layer)

    def look(self, cross: int) -> None:
        """See `FrameRows.look`."""
        self._frames.look(cross)
