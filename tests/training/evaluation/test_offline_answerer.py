"""Offline questions: frames spread over a video, batches, losses, and stop texts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from training.data.bad_row import BadRow
from training.evaluation.offline_answerer import OfflineAnswerer, OfflineQuestion
from training.live_world.clips import Clip

RED = Image.new("RGB", (120, 80), "red")
BLUE = Image.new("L", (50, 200), 40)


@pytest.fixture(scope="module")
def answerer(random_folder: Path) -> OfflineAnswerer:
    """The folder, with more frames than its cameras keep."""
    return OfflineAnswerer(random_folder, num_frames=20, batch_size=4, device="cpu", dtype=torch.float32)


def ask(*visuals: Image.Image | str, text: str = "What do you see now?") -> OfflineQuestion:
    return OfflineQuestion(text=text, visuals=visuals, max_tokens=8)


def test_a_videos_frames_are_spread_over_all_of_it(answerer: OfflineAnswerer, held_out: list[Clip]) -> None:
    pictures = answerer.pictures([str(held_out[0].path)])
    assert pictures.shape == (20, 96, 96, 3)
    assert answerer.pictures([RED, str(held_out[0].path)][:1]).shape == (1, 96, 96, 3)
    assert answerer.pictures([RED, BLUE, RED]).shape == (3, 96, 96, 3)
    np.testing.assert_array_equal(answerer.pictures([RED])[0], np.full((96, 96, 3), (255, 0, 0)))
    assert answerer.pictures([]).shape == (0, 96, 96, 3)


def test_what_cannot_be_shown_is_refused(answerer: OfflineAnswerer, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="got 21 pictures, wanted at most num_frames=20"):
        answerer.pictures([RED] * 21)
    with pytest.raises(BadRow, match="missing file"):
        answerer.pictures([str(tmp_path / "no.mp4")])


def test_answers_depend_on_what_is_shown_and_on_nobody_beside(
    answerer: OfflineAnswerer, held_out: list[Clip]
) -> None:
    questions = [ask(RED), ask(str(held_out[0].path)), ask(), ask(BLUE, RED)]
    together = answerer.answer(questions)
    assert together == [answerer.answer([question])[0] for question in questions]
    assert len(set(together)) > 2
    assert answerer.answer([]) == []


def test_an_answer_ends_where_it_is_told_to(answerer: OfflineAnswerer) -> None:
    whole = answerer.answer([ask(RED)])[0]
    stop = whole[4:7]
    assert stop in whole[1:]
    cut = answerer.answer([replace(ask(RED), stop=("never said", stop))])[0]
    assert cut == whole[: whole.index(stop)].strip()
    assert len(answerer.answer([replace(ask(RED), max_tokens=1)])[0]) < len(whole)


def test_the_loss_is_that_of_what_would_be_said(answerer: OfflineAnswerer) -> None:
    said = answerer.answer([replace(ask(RED), max_tokens=1)])[0]
    vocabulary = answerer.tokenizer.get_vocab()

    def is_one_token(word: str) -> bool:
        ids = answerer.tokenizer(word, add_special_tokens=False)["input_ids"]
        return bool(word.strip()) and isinstance(ids, list) and len(ids) == 1

    spelt = [answerer.tokenizer.decode([number]) for number in list(vocabulary.values())[::9]]
    words = {str(word) for word in [*spelt, said, f" {said}"] if is_one_token(str(word))}
    found = {word: answerer.loss(ask(RED), word) for word in words}
    (likeliest,) = [word for word, (_, best) in found.items() if best]
    assert likeliest.strip() == said
    assert likeliest == min(found, key=lambda word: found[word][0])
    assert 0 < sum(np.exp(-loss) for loss, _ in found.values()) <= 1 + 1e-4
    assert answerer.loss(ask(RED), likeliest + " dog")[0] > found[likeliest][0]
    with pytest.raises(ValueError, match="wanted at least one token"):
        answerer.loss(ask(RED), "")
