"""Right answers follow the world's truth, in known words."""

from __future__ import annotations

import pytest

from tests.training.sample_worlds import STORY, asked_questions, many_worlds, question, texts
from training.live_world.answers import (
    SLOTS,
    Word,
    event_sentence,
    is_final_sentence,
    listed_place,
    reference_answer,
    sentence_at,
)
from training.live_world.questions import WORDINGS, Kind, Question
from training.live_world.world import COLOURS, HAPPENINGS, PLACES, THINGS, World

GRAMMAR = {"A", "The", "at", "At", "to", "All", "is", "thing", "things", "yet"}


@pytest.mark.parametrize(
    ("asked", "time_s", "said"),
    [
        (question("tell"), 1.0, "All is quiet."),
        (question("tell"), 2.0, "A white car appears at middle."),
        (question("tell"), 5.5, "The dog moves to top-right."),
        (question("tell"), 8.0, "The dog turns green."),
        (question("tell"), 12.9, "The cat leaves."),
        (question("what", place=4), 1.9, "Nothing."),
        (question("what", place=4), 2.0, "A white car."),
        (question("where"), 4.9, "At top-left."),
        (question("where"), 5.0, "At top-right."),
        (question("where", thing="cat"), 11.0, "Nowhere."),
        (question("colour"), 7.9, "Red."),
        (question("colour"), 8.0, "Green."),
        (question("colour", thing="cat"), 11.0, "Gone."),
        (question("count"), 1.9, "Two things."),
        (question("count"), 2.0, "Three things."),
        (question("when", thing="car"), 1.9, "Not yet."),
        (question("when", thing="car"), 2.0, "Now!"),
        (question("when", thing="cat", happens="leaves"), 10.9, "Not yet."),
        (question("when", thing="cat", happens="leaves"), 11.0, "Now!"),
    ],
)
def test_a_sentence_tells_what_is_so_when_it_begins(asked: Question, time_s: float, said: str) -> None:
    assert texts(sentence_at(asked, STORY, time_s)) == said


def test_a_list_goes_through_the_places_and_ends() -> None:
    listing = reference_answer(question("list", keeps_on=False), STORY, 9.0, 100.0, 40)
    assert (
        texts(listing.words) == "A green dog at top-right. A white car at middle. A blue cat at bottom-right."
    )
    assert listing.complete
    empty = World(seed=0, index=0, duration_s=9.0, start=(), events=())
    nothing = reference_answer(question("list", keeps_on=False), empty, 1.0, 4.0, 40)
    assert (texts(nothing.words), nothing.complete) == ("Nothing.", True)


def test_an_answer_that_keeps_on_follows_what_happens() -> None:
    said = reference_answer(question("where"), STORY, 3.9, 2.0, 6)
    assert texts(said.words) == "At top-left. At top-left. At top-right."
    assert not said.complete
    assert said.end_s == 3.9 + 5 / 2.0
    told = reference_answer(question("when", thing="car"), STORY, 1.1, 2.0, 40)
    assert texts(told.words) == "Not yet. Now!"
    assert told.complete


def test_an_answer_ends_with_the_clip_and_with_its_words_but_never_within_a_sentence() -> None:
    for world, one, ask_s in asked_questions():
        said = reference_answer(one, world, ask_s, 4.0, 13)
        if said.words:
            assert said.words[-1].text[-1] in ".!"
        assert len(said.words) < 13 + 6
    late = reference_answer(question("tell"), STORY, 13.75, 4.0, 40)
    assert texts(late.words) == "All is quiet."


def test_answers_with_delayed_eyes_tell_what_was_seen() -> None:
    said = reference_answer(question("where"), STORY, 5.1, 4.0, 4, lambda time_s: time_s - 0.4)
    assert texts(said.words) == "At top-left. At top-right."


def test_all_words_are_known_and_all_instructions_are_of_one_language() -> None:
    known = {
        "".join(c for c in w if c.isalpha() or c == "-")
        for wording in sum(WORDINGS.values(), ())
        for w in wording.split()
    }
    known |= {*THINGS, *PLACES, "appears", "leaves"}
    heard: set[str] = set()
    for world, one, ask_s in asked_questions(300):
        heard |= {w.text.rstrip(".!") for w in reference_answer(one, world, ask_s, 4.0, 40).words}
        assert {w.rstrip(".?") for w in one.instruction.split()} <= known
    assert heard <= {*SLOTS, *GRAMMAR}
    assert len(heard & {*THINGS, *COLOURS, *PLACES, *HAPPENINGS}) >= 60


def test_what_a_word_tells_of() -> None:
    slots = {
        w: Word(text=w).slot
        for w in ("dog.", "Red.", "top-left", "appears", "Three", "Now!", "Nowhere.", "the")
    }
    assert slots == {
        "dog.": "thing",
        "Red.": "colour",
        "top-left": "place",
        "appears": "happening",
        "Three": "count",
        "Now!": "when",
        "Nowhere.": "place",
        "the": None,
    }


def test_only_words_that_bear_state_have_a_time_and_it_has_come() -> None:
    for world, one, ask_s in asked_questions():
        for word in sentence_at(one, world, ask_s):
            assert (word.since_s is not None) == (word.slot is not None)
            assert (word.since_s or 0.0) <= ask_s


@pytest.mark.parametrize("kind", ["tell", "what", "where", "colour", "count", "when"])
def test_before_a_words_time_another_word_was_right(kind: Kind) -> None:
    """Otherwise a word would count as one that tells of something new though it could be known before."""
    checked = 0
    for world, one, ask_s in asked_questions(400):
        if one.kind != kind:
            continue
        for word in sentence_at(one, world, ask_s):
            if word.since_s:
                earlier = {w.slot: w for w in sentence_at(one, world, word.since_s - 0.001)}
                now = texts(sentence_at(one, world, ask_s))
                assert word.slot not in earlier or texts(list(earlier.values())) != now
                checked += 1
    assert checked > 10


def test_a_listed_words_time_is_when_it_became_so() -> None:
    for world in many_worlds(60):
        said = reference_answer(question("list", keeps_on=False), world, 9.0, 1e6, 60)
        things = world.state(9.0).things
        wanted = [(t.colour_since_s, t.there_since_s, t.place_since_s) for t in things]
        told = [w.since_s for w in said.words if w.slot]
        assert told == [s for row in wanted for s in row] or not things


def test_a_caption_is_the_sentence_about_the_event() -> None:
    assert [texts(event_sentence(e)) for e in STORY.events] == [
        "A white car appears at middle.",
        "The dog moves to top-right.",
        "The dog turns green.",
        "The cat leaves.",
    ]
    assert all(w.since_s in (None, e.start_s) for e in STORY.events for w in event_sentence(e))


def test_where_an_answer_ends() -> None:
    assert is_final_sentence(question("when"), ["Now!"])
    assert not is_final_sentence(question("when"), ["Not", "yet."])
    assert is_final_sentence(question("list", keeps_on=False), ["Nothing."])
    assert not is_final_sentence(question("list", keeps_on=False), ["A", "red", "dog", "at", "top."])
    assert is_final_sentence(question("where", keeps_on=False), ["At", "top."])
    assert not is_final_sentence(question("where"), ["At", "top."])


def test_which_place_a_list_has_told_of() -> None:
    assert listed_place(["A", "red", "dog", "at", "top-right."], -1) == PLACES.index("top-right")
    assert listed_place(["Nothing."], 3) == 3
