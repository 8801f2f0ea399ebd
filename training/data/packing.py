"""Packs several samples into one row of a batch. No sample sees the text or the frames of another.

Letters: B rows, T text tokens, F frames of a row, M pictures, P visual tokens, S pixels along a side.

A row has the frames of its samples, each of which keeps its own times. Masks separate the samples: `segments` for text,
`visible` for frames. Only rows are padded: the M pictures have no gaps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from training.data.balance import balanced_parts
from training.data.token_row import Ints, TokenBatch, TokenRow

PAD_TO = 8  # lengths are rounded up to this


@dataclass(frozen=True, slots=True)
class Sample:
    """A token row and its N pictures, uint8 [N, S, S, 3]."""

    tokens: TokenRow
    pictures: npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedSamples:
    """A batch of packed rows."""

    tokens: TokenBatch
    segments: Ints  # [B, T]: index in the row of the sample that a token belongs to; -1: padding
    pictures: npt.NDArray[np.uint8]  # [M, S, S, 3], at least one


def equal_bins(lengths: Sequence[int], max_tokens: int) -> list[list[int]]:
    """The samples of each row: as few rows as `bins` makes, of nearly the same length, so that little is padded."""
    rows = bins(lengths, max_tokens)
    equal = balanced_parts(lengths, len(rows)) if rows else []
    return equal if all(sum(lengths[i] for i in row) <= max_tokens for row in equal) else rows


def bins(lengths: Sequence[int], max_tokens: int) -> list[list[int]]:
    """The samples of each row, by first-fit decreasing. The same lengths always give the same rows."""
    rows: list[list[int]] = []
    left: list[int] = []
    for sample in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        row = next((r for r, room in enumerate(left) if room >= lengths[sample]), len(rows))
        if row == len(rows):
            rows.append([])
            left.append(max_tokens)
        rows[row].append(sample)
        left[row] -= lengths[sample]
    return rows


def pack(samples: Sequence[Sample], max_tokens: int, pad_id: int, image_size: int) -> PackedSamples:
    """Pack samples into rows of at most `max_tokens` tokens. No samples give one row with no loss."""
    rows = equal_bins([len(s.tokens.token_ids) for s in samples], max_tokens) or [[]]
    num_tokens = max(sum(len(samples[i].tokens.token_ids) for i in row) for row in rows)
    num_tokens = max(-(-num_tokens // PAD_TO), 1) * PAD_TO
    num_frames = max(max(sum(len(samples[i].pictures) for i in row) for row in rows), 1)
    tokens, segments = _empty((len(rows), num_tokens), num_frames, pad_id)
    pictures: list[npt.NDArray[np.uint8]] = []
    num_pictures = 0
    for r, row in enumerate(rows):
        token = frame = 0
        for segment, i in enumerate(row):
            sample, num = samples[i].tokens, len(samples[i].pictures)
            at_tokens = slice(token, token + len(sample.token_ids))
            at_frames = slice(frame, frame + num)
            _fill(tokens, r, at_tokens, at_frames, sample)
            segments[r, at_tokens] = segment
            tokens.frames_of_row[r, at_frames] = range(num_pictures, num_pictures + num)
            pictures.append(samples[i].pictures)
            token, frame, num_pictures = at_tokens.stop, at_frames.stop, num_pictures + num
    if not num_pictures:  # FSDP needs a forward pass of the encoder on every worker
        pictures = [np.zeros((1, image_size, image_size, 3), np.uint8)]
    return PackedSamples(
        tokens=tokens,
        segments=segments,
        pictures=np.concatenate(pictures),
    )


def _empty(shape: tuple[int, int], num_frames: int, pad_id: int) -> tuple[TokenBatch, Ints]:
    ids = np.full(shape, pad_id, np.int64)
    tokens = TokenBatch(
        token_ids=ids,
        input_ids=ids.copy(),
        text_index=np.zeros(shape, np.int64),
        frames_of_row=np.zeros((shape[0], num_frames), np.int64),
        frame_index=np.zeros((shape[0], num_frames), np.int64),
        visible=np.zeros((*shape, num_frames), np.bool_),
        loss_mask=np.zeros(shape, np.bool_),
        loss_weights=np.zeros(shape),
        topics=np.full(shape[0], -1),
    )
    return tokens, np.full(shape, -1, np.int64)


def _fill(tokens: TokenBatch, row: int, at_tokens: slice, at_frames: slice, sample: TokenRow) -> None:
    tokens.token_ids[row, at_tokens] = sample.token_ids
    tokens.input_ids[row, at_tokens] = sample.input_ids
    tokens.text_index[row, at_tokens] = sample.text_index
    tokens.loss_mask[row, at_tokens] = sample.loss_mask
    tokens.loss_weights[row, at_tokens] = sample.loss_weights
    tokens.frame_index[row, at_frames] = sample.frame_index
    tokens.visible[row, at_tokens, at_frames] = sample.visible
