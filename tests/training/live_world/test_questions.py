"""Sampled questions: all kinds and wordings, about what changes, the same for the same seed."""

from __future__ import annotations

from collections import Counter
from typing import get_args

import numpy as np

from tests.training.sample_worlds import asked_questions, texts
from training.live_world.answers import NUMBERS, ReferenceAnswer, reference_answer, sentence_at
from training.live_world.questions import KINDS, WORDINGS, Kind, sample_question
from training.live_world.world import make_world


def test_all_kinds_and_wordings_are_asked() -> None:
    assert get_args(Kind) == KINDS
    picked = [one for _, one, _ in asked_questions(400)]
    kinds = Counter(one.kind for one in picked)
    assert all(kinds[kind] > 0.04 * len(picked) for kind in KINDS)
    assert {(one.kind, one.keeps_on) for one in picked} == set(WORDINGS)
    assert all(not one.keeps_on for one in picked if one.kind == "list")
    assert {one.happening for one in picked if one.kind == "when"} == {"appears", "leaves"}


def test_questions_are_worth_asking() -> None:
    """Most answers that keep on change while they are spoken."""
    changes = [
        len({texts(sentence_at(one, world, ask_s + delay_s)) for delay_s in (0, 2, 4, 6, 8)}) > 1
        for world, one, ask_s in asked_questions()
        if one.keeps_on and ask_s < world.duration_s - 9
    ]
    assert sum(changes) > 0.6 * len(changes)


def test_the_same_numbers_ask_the_same() -> None:
    world = make_world(7, 0)
    first, second = (sample_question(np.random.default_rng(1), world, 4.0) for _ in range(2))
    assert first == second
    assert isinstance(reference_answer(first, world, 4.0, 4.0, 10), ReferenceAnswer)
    assert len(NUMBERS) == 5
