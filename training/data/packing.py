"""Several samples in one row of a batch, none of which sees another's text or frames.

Letters: B rows, T text tokens, C clips, F frames of a clip, M pictures, P visual tokens, S pixels along a side.

The frames of a row's samples lie one after the other as one clip. Each sample keeps its own clock, and the masks keep
samples apart: text by `segments`, frames by `visible`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from training.data.token_row import Ints, TokenBatch, TokenRow

PAD_TO = 8  # lengths are rounded up to this


@dataclass(frozen=True, slots=True)
class Sample:
    """A token row and its N pictures, uint8 [N, S, S, 3]."""

    tokens: TokenRow
    pictures: npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True, kw_only=True)
class Packed:
    """A batch of packed rows; clip b is row b's."""

    batch: TokenBatch
    segments: Ints  # [B, T]: which sample of its row a token belongs to; -1: padding
    pictures: npt.NDArray[np.uint8]  # [M, S, S, 3], at least one
    slots: Ints  # [M]: the place of a picture among B * F


def bins(lengths: Sequence[int], longest: int) -> list[list[int]]:
    """Which samples share a row: the first that has room, longest samples first. Always the same."""
    rows: list[list[int]] = []
    left: list[int] = []
    for number in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        row = next((r for r, room in enumerate(left) if room >= lengths[number]), len(rows))
        if row == len(rows):
            rows.append([])
            left.append(longest)
        rows[row].append(number)
        left[row] -= lengths[number]
    return rows


def pack(samples: Sequence[Sample], longest: int, pad_id: int, size: int) -> Packed:
    """Pack samples into rows of at most `longest` tokens; no samples at all give a row in which nothing counts."""
    rows = bins([len(s.tokens.token_ids) for s in samples], longest) or [[]]
    num_tokens = max(sum(len(samples[i].tokens.token_ids) for i in row) for row in rows)
    num_tokens = max(-(-num_tokens // PAD_TO), 1) * PAD_TO
    num_frames = max(max(sum(len(samples[i].pictures) for i in row) for row in rows), 1)
    batch, segments = _empty((len(rows), num_tokens), num_frames, pad_id)
    slots: list[int] = []
    for r, row in enumerate(rows):
        token = frame = 0
        for segment, i in enumerate(row):
            said, seen = samples[i].tokens, len(samples[i].pictures)
            here = slice(token, token + len(said.token_ids))
            there = slice(frame, frame + seen)
            _fill(batch, r, here, there, said)
            segments[r, here] = segment
            slots += range(r * num_frames + frame, r * num_frames + frame + seen)
            token, frame = here.stop, there.stop
    order = [samples[i].pictures for row in rows for i in row if len(samples[i].pictures)]
    if not slots:  # every worker must go through the encoder equally often
        slots, order = [0], [np.zeros((1, size, size, 3), np.uint8)]
    return Packed(
        batch=batch, segments=segments, pictures=np.concatenate(order), slots=np.array(slots, np.int64)
    )


def _empty(shape: tuple[int, int], num_frames: int, pad_id: int) -> tuple[TokenBatch, Ints]:
    ids = np.full(shape, pad_id, np.int64)
    batch = TokenBatch(
        token_ids=ids,
        input_ids=ids.copy(),
        text_index=np.zeros(shape, np.int64),
        clip_of_row=np.arange(shape[0]),
        frame_index=np.zeros((shape[0], num_frames), np.int64),
        visible=np.zeros((*shape, num_frames), np.bool_),
        loss_mask=np.zeros(shape, np.bool_),
        loss_weights=np.zeros(shape),
        topics=np.full(shape[0], -1),
    )
    return batch, np.full(shape, -1, np.int64)


def _fill(batch: TokenBatch, row: int, here: slice, there: slice, said: TokenRow) -> None:
    batch.token_ids[row, here], batch.input_ids[row, here] = said.token_ids, said.input_ids
    batch.text_index[row, here] = said.text_index
    batch.loss_mask[row, here], batch.loss_weights[row, here] = said.loss_mask, said.loss_weights
    batch.frame_index[row, there] = said.frame_index
    batch.visible[row, here, there] = said.visible
