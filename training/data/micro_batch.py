"""A part: what goes through the model together, a micro-batch of a step. It crosses processes as one safetensors blob.

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
    """Rows, the frames they look at (as pictures, or as the encoder's output), and what became of bad data."""

    number: int  # counted over the whole run
    batch: TokenBatch
    num_clips: int
    segments: Ints | None = None  # [B, T]: see `packing.Packed`; None: one sample a row
    pictures: npt.NDArray[np.uint8] | None = None  # [M, S, S, 3]
    slots: Ints | None = None  # [M]: the place of a picture among C * F
    features: npt.NDArray[np.float32] | None = None  # [C, F, P, Dv] instead
    truth: npt.NDArray[np.int8] | None = None  # [C, F, P, 3], for grounding
    samples: tuple[str, ...] = ()  # ids, for the record of what was seen
    bad: tuple[tuple[str, str, str], ...] = ()  # place, reason, detail

    @property
    def weight(self) -> float:
        """The weight of all tokens that count."""
        return float(self.batch.weights[self.batch.counts].sum())

    @property
    def num_tokens(self) -> int:
        """Text tokens, padding not counted."""
        if self.segments is not None:
            return int((self.segments >= 0).sum())
        return int((self.batch.visible.any(-1) | self.batch.counts).sum())

    @property
    def num_frames(self) -> int:
        """Frames that some token looks at."""
        return int(self.batch.visible.any(1).sum())

    def to_bytes(self) -> bytes:
        """Everything, as one blob."""
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
        """Read what `to_bytes` wrote."""
        arrays = load(blob)
        rest: dict[str, Any] = json.loads(arrays.pop("rest").tobytes())
        batch = TokenBatch(**{f.name: arrays.pop(f"batch.{f.name}") for f in fields(TokenBatch)})
        rest["samples"], rest["bad"] = tuple(rest["samples"]), tuple(tuple(entry) for entry in rest["bad"])
        return MicroBatch(batch=batch, **arrays, **rest)

    def text_mask(self) -> Bools | None:
        """What each token may read, bool [B, T, T]; None: all up to itself."""
        if self.segments is None:
            return None
        same = self.segments[:, :, None] == self.segments[:, None, :]
        return same & np.tri(self.segments.shape[1], dtype=np.bool_)


ARRAYS = ("segments", "pictures", "slots", "features", "truth")


def packed_micro_batch(
    number: int,
    samples: Sequence[Sample],
    longest: int,
    pad_id: int,
    size: int,
    ids: Sequence[str] = (),
    bad: Sequence[tuple[str, str, str]] = (),
) -> MicroBatch:
    """Samples as a part of packed rows; without samples, one in which nothing counts."""
    packed: Packed = pack(samples, longest, pad_id, size)
    return MicroBatch(
        number=number,
        batch=packed.batch,
        num_clips=len(packed.segments),
        segments=packed.segments,
        pictures=packed.pictures,
        slots=packed.slots,
        samples=tuple(ids),
        bad=tuple(bad),
    )
