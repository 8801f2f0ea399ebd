"""A small world with every kind of event, and helpers to walk through worlds, questions and answers. No test."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from training.evaluation.timed_answer import TimedAnswer
from training.live_world.answers import ReferenceAnswer, Word, reference_answer
from training.live_world.questions import Question, sample_question
from training.live_world.word_scores import SpokenWord
from training.live_world.world import Event, Happening, Thing, World, make_world

DOG = Thing(name="dog", colour="red", place=0)
CAT = Thing(name="cat", colour="blue", place=8)
NEW_CAR = Thing(name="car", colour="white", place=4, there_since_s=2.0, colour_since_s=2.0, place_since_s=2.0)
MOVED_DOG = Thing(name="dog", colour="red", place=2, place_since_s=5.0)
GREEN_DOG = Thing(name="dog", colour="green", place=2, place_since_s=5.0, colour_since_s=8.0)


def happening(kind: Happening, start_s: float, thing: Thing, from_place: int) -> Event:
    return Event(happening=kind, start_s=start_s, thing=thing, from_place=from_place)


STORY = World(
    seed=5,
    index=0,
    duration_s=14.0,
    start=(DOG, CAT),
    events=(
        happening("appears", 2.0, NEW_CAR, 4),
        happening("moves", 5.0, MOVED_DOG, 0),
        happening("turns", 8.0, GREEN_DOG, 2),
        happening("leaves", 11.0, CAT, 8),
    ),
)


def many_worlds(num: int = 150, seed: int = 3) -> Iterator[World]:
    """Generated worlds."""
    return (make_world(seed, index) for index in range(num))


def moments(world: World) -> list[float]:
    """Times just before, at and after the start and end of every event, and in between."""
    edges = [0.0, *(e.start_s for e in world.events), *(e.end_s for e in world.events)]
    near = (edge + step for edge in edges for step in (-0.001, 0.0, 0.001, 0.7))
    return sorted(t for t in near if 0.0 <= t < world.duration_s)


def texts(words: Sequence[Word]) -> str:
    """A sentence as one text."""
    return " ".join(word.text for word in words)


def speak(said: ReferenceAnswer) -> list[SpokenWord]:
    """An answer spoken by someone who sees every frame at once."""
    return [
        SpokenWord(text=word.text, seen_s=said.start_s + number / said.steps_per_second)
        for number, word in enumerate(said.words)
    ]


def question(
    kind: str, *, keeps_on: bool = True, thing: str = "dog", place: int = 0, happens: str = "appears"
) -> Question:
    """A question with defaults."""
    return Question(kind=kind, keeps_on=keeps_on, thing=thing, place=place, happening=happens)  # type: ignore[arg-type]


def asked_questions(num: int = 120) -> Iterator[tuple[World, Question, float]]:
    """Sampled questions with their worlds and the times at which they are asked."""
    rng = np.random.default_rng(0)
    for world in many_worlds(num):
        for _ in range(4):
            ask_s = float(rng.uniform(0.0, 14.0))
            yield world, sample_question(rng, world, ask_s), ask_s


WHERE = question("where")


def late_answer(delay_s: float) -> TimedAnswer:
    """An answer to `WHERE` about STORY, asked at 3 s, by someone who sees everything with a delay."""
    right = reference_answer(WHERE, STORY, 3.0, 4.0, 24, lambda time_s: time_s - delay_s)
    tokens = tuple((" " + word.text, word.seen_s) for word in speak(right))
    return TimedAnswer(tokens=tokens, asked_seen_s=3.0, ended=False)
