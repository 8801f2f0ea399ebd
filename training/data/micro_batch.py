"""A micro-batch: the samples of one forward pass. It crosses processes as one safetensors blob.

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

from training.data.packing import PackedSamples, Sample, pack
from training.data.token_row import Bools, Ints, TokenBatch


@dataclass(frozen=True, slots=True, kw_only=True)
class MicroBatch:
    """Token rows, their frames (pictures, or features from the encoder), and the bad rows that were skipped."""

    index: int  # in the whole run; -1: an empty micro-batch
    tokens: TokenBatch
    num_clips: int
    segments: Ints | None = None  # [B, T]: see `packing.PackedSamples`; None: one sample in each row
    pictures: npt.NDArray[np.uint8] | None = None  # [M, S, S, 3]; M = C * F in live-world micro-batches
    features: npt.NDArray[np.float32] | None = None  # [C, F, P, Dv], instead of pictures
    place_labels: npt.NDArray[np.int8] | None = None  # [C, F, P, 3], for grounding: `clips.place_labels`
    sample_ids: tuple[str, ...] = ()  # for `micro_batches-RANK.jsonl`
    bad_rows: tuple[tuple[str, str, str], ...] = ()  # video or id, reason, detail

    @property
    def loss_weight(self) -> float:
        """Sum of the loss weights."""
        return float(self.tokens.loss_weights[self.tokens.loss_mask].sum())

    @property
    def num_tokens(self) -> int:
        """Text tokens without padding."""
        if self.segments is not None:
            return int((self.segments >= 0).sum())
        return int((self.tokens.visible.any(-1) | self.tokens.loss_mask).sum())

    @property
    def num_frames(self) -> int:
        """Frames that at least one token sees."""
        return int(self.tokens.visible.any(1).sum())

    def to_bytes(self) -> bytes:
        """The micro-batch as one blob."""
        arrays = {
            f"tokens.{f.name}": np.ascontiguousarray(getattr(self.tokens, f.name)) for f in fields(TokenBatch)
        }
        for name in ARRAYS:
            if (value := getattr(self, name)) is not None:
                arrays[name] = np.ascontiguousarray(value)
        rest = {
            f.name: getattr(self, f.name) for f in fields(MicroBatch) if f.name not in (*ARRAYS, "tokens")
        }
        arrays["rest"] = np.frombuffer(json.dumps(rest).encode(), np.uint8)
        return save(arrays)

    @staticmethod
    def from_bytes(blob: bytes) -> MicroBatch:
        """The inverse of `to_bytes`."""
        arrays = load(blob)
        rest: dict[str, Any] = json.loads(arrays.pop("rest").tobytes())
        tokens = TokenBatch(**{f.name: arrays.pop(f"tokens.{f.name}") for f in fields(TokenBatch)})
        rest["sample_ids"] = tuple(rest["sample_ids"])
        rest["bad_rows"] = tuple(tuple(entry) for entry in rest["bad_rows"])
        return MicroBatch(tokens=tokens, **arrays, **rest)

    def text_mask(self) -> Bools | None:
        """Attention mask of the text, bool [B, T, T], or None for a causal mask."""
        if self.segments is None:
            return None
        same = self.segments[:, :, None] == self.segments[:, None, :]
        return same & np.tri(self.segments.shape[1], dtype=np.bool_)


ARRAYS = ("segments", "pictures", "features", "place_labels")


def packed_micro_batch(
    index: int,
    samples: Sequence[Sample],
    max_tokens: int,
    pad_id: int,
    image_size: int,
    sample_ids: Sequence[str] = (),
    bad_rows: Sequence[tuple[str, str, str]] = (),
) -> MicroBatch:
    """Samples packed into rows of at most `max_tokens`. Without samples, a micro-batch with no loss."""
    packed: PackedSamples = pack(samples, max_tokens, pad_id, image_size)
    return MicroBatch(
        index=index,
        tokens=packed.tokens,
        num_clips=len(packed.segments),
        segments=packed.segments,
        pictures=packed.pictures,
        sample_ids=tuple(sample_ids),
        bad_rows=tuple(bad_rows),
    )
