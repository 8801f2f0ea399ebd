"""Curriculum tasks: dialogs in a window of frames, and flip books."""

from __future__ import annotations

import numpy as np
import pytest

from training.live_world.answers import NUMBERS
from training.live_world.clips import frame_times
from training.live_world.curriculum.dialog_tokenizer import DialogTokenizer
from training.live_world.curriculum.tasks import dialog_rows, flip_book_row
from training.live_world.world import make_world

CAPACITY = 16  # of the fixture `dialog_tokenizer`


def test_dialog_rows_ask_in_the_window_and_have_answers(dialog_tokenizer: DialogTokenizer) -> None:
    times = frame_times(0, 100, 5.0)[20:76]
    rows = dialog_rows(np.random.default_rng(0), dialog_tokenizer, make_world(3, 1), times, 60, 8.0, 20)
    assert len(rows) == 60
    for row in rows:
        first = int(np.argmax(row.loss_mask))
        seen = np.flatnonzero(row.visible[first])
        assert 1 <= len(seen) <= CAPACITY
        assert row.visible[:, seen[0] :].any(-1).all()
        assert row.loss_mask.sum() > 0


@pytest.mark.parametrize(("length", "num_successive"), [(1, 1), (3, 1), (3, 2)])
def test_a_flip_book_shows_a_new_scene_for_each_sentence(
    dialog_tokenizer: DialogTokenizer, length: int, num_successive: int
) -> None:
    """Each sentence is true in the newest picture at its start, whatever the picture's index in the batch."""
    world = make_world(3, 1)
    starts = np.random.default_rng(1).permutation(87)[: 24 // length]
    scenes = np.asarray(starts[:, None] + np.arange(length), np.float64) * 0.2
    rng = np.random.default_rng(2)
    changed = 0
    for _ in range(120):
        row = flip_book_row(rng, dialog_tokenizer, world, scenes, 28, num_successive=num_successive)
        newest = [int(np.argmax(np.where(seen, row.frame_index, -1))) for seen in row.visible]
        assert np.array_equal(np.sort(row.visible[:-1].sum(1)), row.visible[:-1].sum(1)), (
            "frames must not disappear"
        )
        text = str(dialog_tokenizer.tokenizer.decode(row.token_ids[row.loss_mask.argmax() + 1 :]))
        if "thing" not in text:
            continue
        counted = [w for w in text.replace("<|im_end|>", "").split() if w in NUMBERS]
        places = [
            i
            for i, token in enumerate(row.token_ids)
            if str(dialog_tokenizer.tokenizer.decode([token])).strip() in NUMBERS
        ]
        wanted = [NUMBERS[len(world.state(float(scenes.flat[newest[at - 1]])).things)] for at in places]
        assert counted == wanted
        changed += len(set(wanted)) > 1
    assert changed > 0
