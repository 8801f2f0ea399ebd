"""A micro-batch: what goes through the model at once. It crosses processes as one safetensors blob.

Letters: C clips, F frames of a clip, M pictures, P visual tokens, Dv the encoder's width, S pixels along a side.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors.numpy import load, save

from training.data.packing import Packed, Sample, pack
from training.data.token_row import Bools, Ints, TokenBatch


@dataclass(frozen=True, slots=True, kw_only=True)
class MicroBatch:
    """Token rows, their frames (as pictures or as the encoder's output), and the bad rows that were skipped."""

    index: int  # of the micro-batch in the whole run
    batch: TokenBatch
    num_clips: int
    segments: Ints | None = None  # [B, T]: see `packing.Packed`; None: one sample a row
    pictures: npt.NDArray[np.uint8] | None = None  # [M, S, S, 3]
    slots: Ints | None = None  # [M]: index of each picture among the C * F frames
    features: npt.NDArray[np.float32] | None = None  # [C, F, P, Dv] instead
    truth: npt.NDArray[np.int8] | None = None  # [C, F, P, 3], for grounding
    samples: tuple[str, ...] = ()  # their ids, for the record of the run
    bad: tuple[tuple[str, str, str], ...] = ()  # video or id, reason, detail

    @property
    def weight(self) -> float:
        """Sum of the loss weights."""
        return float(self.batch.loss_weights[self.batch.loss_mask].sum())

    @property
    def num_tokens(self) -> int:
        """Text tokens, padding not counted."""
        if self.segments is not None:
            return int((self.segments >= 0).sum())
        return int((self.batch.visible.any(-1) | self.batch.loss_mask).sum())

    @property
    def num_frames(self) -> int:
        """Frames that at least one token sees."""
        return int(self.batch.visible.any(1).sum())

    def to_bytes(self) -> bytes:
        """The micro-batch as one blob."""
        arrays = {
            f"batch.{f.name}": np.ascontiguousarray(getattr(self.batch, f.name)) for f in fields(TokenBatch)
        }
        for name in ARRAYS:
            if (value := getattr(self, name)) is not None:
                arrays[name] = np.ascontiguousarray(value)
        rest = {f.name: getattr(self, f.name) for f in fields(MicroBatch) if f.name not in (*ARRAYS, "batch")}
        arrays["rest"] = np.frombuffer(json.dumps(rest).encode(), np.uint8)
        return save(arrays)

    @staticmethod
    def from_bytes(blob: bytes) -> MicroBatch:
        """The inverse of `to_bytes`."""
        arrays = load(blob)
        rest: dict[str, Any] = json.loads(arrays.pop("rest").tobytes())
        batch = TokenBatch(**{f.name: arrays.pop(f"batch.{f.name}") for f in fields(TokenBatch)})
        rest["samples"], rest["bad"] = tuple(rest["samples"]), tuple(tuple(entry) for entry in rest["bad"])
        return MicroBatch(batch=batch, **arrays, **rest)

    def text_mask(self) -> Bools | None:
        """Attention mask of the text, bool [B, T, T]; None: causal."""
        if self.segments is None:
            return None
        same = self.segments[:, :, None] == self.segments[:, None, :]
        return same & np.tri(self.segments.shape[1], dtype=np.bool_)


ARRAYS = ("segments", "pictures", "slots", "features", "truth")


def packed_micro_batch(
    index: int,
    samples: Sequence[Sample],
    longest: int,
    pad_id: int,
    size: int,
    ids: Sequence[str] = (),
    bad: Sequence[tuple[str, str, str]] = (),
) -> MicroBatch:
    """Samples packed into rows; without samples, a micro-batch with no loss."""
    packed: Packed = pack(samples, longest, pad_id, size)
    return MicroBatch(
        index=index,
        batch=packed.batch,
        num_clips=len(packed.segments),
        segments=packed.segments,
        pictures=packed.pictures,
        slots=packed.slots,
        samples=tuple(ids),
        bad=tuple(bad),
    )
