"""Token rows: a dialog as token ids, with the frames that each token sees and the loss mask.

Letters: T text tokens of a row, N frames; B rows of a batch, C clips, F frames of each clip.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenRow:
    """One dialog on one clip: T text tokens, N frames of the clip."""

    token_ids: Ints  # [T]: the correct tokens, which the model learns to predict
    text_index: Ints  # [T]
    frame_index: Ints  # [N]
    visible: Bools  # [T, N]: frames that position i sees: those that had arrived when token i + 1 was made
    loss_mask: Bools  # [T]: whether the prediction of token i + 1 is part of the loss
    loss_weights: Floats  # [T]: weight of that prediction, if it is part of the loss
    input_ids: Ints  # [T]: tokens that the model reads: `token_ids`, with wrong words in some answers
    topic: int = -1  # token of the thing or place that the question is about; -1: none


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenBatch:
    """Rows of several clips, padded on the right: B rows, T text tokens, C clips, F frames of each."""

    token_ids: Ints  # [B, T]
    text_index: Ints  # [B, T]
    frames_of_row: Ints  # [B, F]: which frames of the micro-batch are a row's
    frame_index: Ints  # [B, F]
    visible: Bools  # [B, T, F]
    loss_mask: Bools  # [B, T]
    loss_weights: Floats  # [B, T]
    input_ids: Ints  # [B, T]
    topics: Ints  # [B]


def collate(rows: Sequence[TokenRow], clip_of_row: Sequence[int], pad_id: int) -> TokenBatch:
    """Pad rows to the longest one; padding sees no frame and is not part of the loss.

    The frames of the micro-batch are those of its clips, one after the other. All clips have as many.
    """
    longest = max(len(r.token_ids) for r in rows)
    longest = (longest + 7) // 8 * 8
    num_frames = len(rows[0].frame_index)
    shape = (len(rows), longest)
    ids, index = np.full(shape, pad_id, dtype=np.int64), np.zeros(shape, dtype=np.int64)
    visible, loss_mask = np.zeros((*shape, num_frames), dtype=np.bool_), np.zeros(shape, dtype=np.bool_)
    input_ids, weights = ids.copy(), np.zeros(shape)
    for i, row in enumerate(rows):
        length = len(row.token_ids)
        ids[i, :length], index[i, :length] = row.token_ids, row.text_index
        visible[i, :length], loss_mask[i, :length] = row.visible, row.loss_mask
        input_ids[i, :length], weights[i, :length] = row.input_ids, row.loss_weights
    return TokenBatch(
        token_ids=ids,
        text_index=index,
        frames_of_row=np.array(clip_of_row)[:, None] * num_frames + np.arange(num_frames),
        frame_index=np.stack([r.frame_index for r in rows]),
        visible=visible,
        loss_mask=loss_mask,
        loss_weights=weights,
        input_ids=input_ids,
        topics=np.array([r.topic for r in rows]),
    )
