"""Word scores: the rule of a sentence's start, wrong words, and words that are not scored."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest

from tests.training.sample_worlds import STORY, many_worlds, question, speak
from training.live_world.answers import reference_answer
from training.live_world.questions import Question, sample_question
from training.live_world.word_scores import SpokenWord, WordScore, join_tokens, score_words, word_accuracy


def spoken(text: str, start_s: float, step_s: float = 0.2) -> list[SpokenWord]:
    """A text whose words see one frame after the other."""
    return [SpokenWord(text=w, seen_s=start_s + n * step_s) for n, w in enumerate(text.split())]


def scores(
    asked: Question, text: str, start_s: float, *, ended: bool = False, asked_s: float = 0.0
) -> list[WordScore]:
    return score_words(asked, STORY, asked_s, spoken(text, start_s), ended)


def wrong(judged: list[WordScore]) -> list[tuple[str, str | None, str | None]]:
    return [(v.slot, v.said, v.wanted) for v in judged if not v.right]


def test_a_perfect_answer_is_all_right() -> None:
    rng = np.random.default_rng(0)
    judged: list[WordScore] = []
    for world in many_worlds():
        for _ in range(4):
            ask_s = float(rng.uniform(1.0, 12.0))
            said = reference_answer(sample_question(rng, world, ask_s), world, ask_s, 4.0, 30)
            judged += score_words(said.question, world, ask_s, speak(said), said.complete)
    assert word_accuracy(judged) == 1.0
    assert sum(v.after for v in judged) > 500
    assert {v.slot for v in judged} == {"thing", "colour", "place", "happening", "count", "when"}


def test_an_answer_from_the_picture_at_the_question_is_wrong_about_what_came_after() -> None:
    rng = np.random.default_rng(1)
    judged: list[WordScore] = []
    for world in many_worlds():
        ask_s = float(rng.uniform(1.0, 12.0))
        one = sample_question(rng, world, ask_s)
        frozen = reference_answer(one, world, ask_s, 4.0, 30, lambda _, asked_s=ask_s: asked_s)
        judged += score_words(one, world, ask_s, speak(frozen), frozen.complete)
    before, after = ([v for v in judged if v.after is late] for late in (False, True))
    assert word_accuracy(before) > 0.95
    assert word_accuracy(after) < 0.3


def test_a_sentence_is_judged_by_what_was_so_when_it_began() -> None:
    assert not wrong(scores(question("where"), "At top-left.", 4.9))  # it moves while the place is spoken
    assert wrong(scores(question("where"), "At top-left.", 5.0)) == [("place", "top-left", "top-right")]
    assert wrong(scores(question("where"), "At top-right.", 4.9)) == [("place", "top-right", "top-left")]


def test_each_sentence_has_its_own_moment() -> None:
    words = [*spoken("At top-left.", 4.6), *spoken("At top-right.", 5.0), *spoken("At top-left.", 5.4)]
    judged = score_words(question("where"), STORY, 1.0, words, False)
    assert [v.right for v in judged] == [True, True, False]
    assert [v.after for v in judged] == [False, True, True]
    assert [v.lag_s for v in judged] == pytest.approx([3.6, 4.0, 4.4])


def test_after_means_after_the_newest_frame_the_question_could_see() -> None:
    for asked_s, after in ((4.9, True), (5.0, False), (5.2, False)):
        (judged,) = scores(question("where"), "At top-right.", 5.4, asked_s=asked_s)
        assert judged.after is after


@pytest.mark.parametrize(
    ("text", "mistakes"),
    [
        ("A white car appears at middle.", []),
        ("A white car appears.", [("place", None, "middle")]),
        (
            "All is quiet.",
            [
                ("happening", "quiet", "appears"),
                ("colour", None, "white"),
                ("thing", None, "car"),
                ("place", None, "middle"),
            ],
        ),
        (
            "The car leaves.",
            [("happening", "leaves", "appears"), ("colour", None, "white"), ("place", None, "middle")],
        ),
        ("A red white car appears at middle.", [("colour", "red", "white"), ("colour", "white", None)]),
        ("Now a white car appears at middle.", [("when", "Now", None)]),
    ],
)
def test_missing_and_extra_words_are_wrong(
    text: str, mistakes: list[tuple[str, str | None, str | None]]
) -> None:
    assert wrong(scores(question("tell"), text, 2.5)) == mistakes


def test_a_cut_off_sentence_is_judged_by_the_words_it_has() -> None:
    assert not wrong(scores(question("tell"), "A white car", 2.5))
    assert len(scores(question("tell"), "A white car", 2.5)) == 2
    assert wrong(scores(question("tell"), "A red car", 2.5)) == [("colour", "red", "white")]
    assert ("place", None, "middle") in wrong(scores(question("tell"), "A white car", 2.5, ended=True))


def test_an_answer_that_ends_too_early_left_something_out() -> None:
    keeps_on = scores(question("where"), "At top-left.", 3.0, ended=True)
    assert wrong(keeps_on) == [("place", None, "top-left")]
    listed = scores(question("list", keeps_on=False), "A red dog at top-left.", 1.0, ended=True)
    assert wrong(listed) == [
        ("colour", None, "blue"),
        ("thing", None, "cat"),
        ("place", None, "bottom-right"),
    ]
    silent = score_words(question("where", keeps_on=False), STORY, 5.0, [], True)
    assert wrong(silent) == [("place", None, "top-right")]
    assert score_words(question("where", keeps_on=False), STORY, 5.0, [], False) == []


def test_an_answer_that_goes_on_too_long_is_wrong_from_there() -> None:
    judged = scores(question("where", keeps_on=False), "At top-left. At top-left.", 3.0, ended=True)
    assert wrong(judged) == [("place", "top-left", None)]
    now = scores(question("when", thing="car"), "Now! Not yet.", 2.0, ended=True)
    assert wrong(now) == [("when", "Not", None)]


def test_a_list_is_judged_by_what_comes_next() -> None:
    whole = "A red dog at top-left. A blue cat at bottom-right."
    assert not wrong(scores(question("list", keeps_on=False), whole, 0.0, ended=True))
    left_out = scores(question("list", keeps_on=False), "A blue cat at bottom-right.", 0.0, ended=True)
    assert [said for _, said, _ in wrong(left_out)] == ["blue", "cat", "bottom-right"]


def test_tokens_become_words_that_saw_what_their_first_token_saw() -> None:
    tokens = [
        ("A", 0.0),
        (" red", 0.2),
        (" d", 0.4),
        ("og", 0.6),
        (".", 0.8),
        (" ", 1.0),
        ("Now", 1.2),
        ("!", 1.4),
    ]
    assert [(w.text, w.seen_s) for w in join_tokens(tokens)] == [
        ("A", 0.0),
        ("red", 0.2),
        ("dog.", 0.4),
        ("Now!", 1.2),
    ]
    assert join_tokens([]) == []


def test_words_go_through_tokens_unchanged() -> None:
    said = reference_answer(question("tell"), STORY, 1.0, 4.0, 30)
    words = speak(said)
    tokens = [(w.text if n == 0 else " " + w.text, w.seen_s) for n, w in enumerate(words)]
    assert join_tokens(tokens) == words
    assert all(a.seen_s < b.seen_s for a, b in pairwise(words))


def test_no_words_have_no_share() -> None:
    assert math.isnan(word_accuracy([]))
