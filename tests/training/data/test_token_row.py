"""Batches of token rows: padding has no effect."""

from __future__ import annotations

import numpy as np
import torch

from model.network.streamchat import StreamChat
from tests.training.sample_worlds import STORY, question
from tests.training.served_logits import logits_of, some_features
from training.data.token_row import collate
from training.live_world.answers import reference_answer
from training.live_world.clips import frame_times
from training.live_world.curriculum.dialog_tokenizer import DialogTokenizer


def test_padding_sees_no_frame_and_has_no_loss(dialog_tokenizer: DialogTokenizer) -> None:
    times = frame_times(0, 70, 5.0)
    rows = [
        dialog_tokenizer.row(
            "Count the things.",
            reference_answer(question("count", keeps_on=False), STORY, 3.0, 4.0, 9),
            times,
        ),
        dialog_tokenizer.row(
            "What is happening?", reference_answer(question("tell"), STORY, 3.0, 4.0, 20), times
        ),
    ]
    batch = collate(rows, [0, 1], pad_id=0)
    assert batch.token_ids.shape == batch.loss_mask.shape == batch.visible.shape[:2]
    for number, row in enumerate(rows):
        length = len(row.token_ids)
        np.testing.assert_array_equal(batch.token_ids[number, :length], row.token_ids)
        np.testing.assert_array_equal(batch.visible[number, :length], row.visible)
        assert batch.loss_mask[number].sum() == row.loss_mask.sum()
        assert not batch.visible[number, length:].any()
    np.testing.assert_array_equal(batch.frames_of_row, np.arange(2 * len(times)).reshape(2, -1))


def test_padding_changes_no_logit(dialog_tokenizer: DialogTokenizer, random_model: StreamChat) -> None:
    times = frame_times(0, 70, 5.0)
    short = dialog_tokenizer.row(
        "Find the dog.", reference_answer(question("where", keeps_on=False), STORY, 3.0, 4.0, 9), times
    )
    long = dialog_tokenizer.row(
        "What is happening?", reference_answer(question("tell"), STORY, 3.0, 4.0, 30), times
    )
    features = some_features(70)[None]
    alone = logits_of(random_model, collate([short], [0], 0), features)[0]
    together = logits_of(random_model, collate([short, long], [0, 0], 0), features)[0]
    length = len(short.token_ids)
    torch.testing.assert_close(alone[:length], together[:length], atol=1e-4, rtol=1e-4)
