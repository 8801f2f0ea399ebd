"""The right answers to questions about the live world, sentence by sentence.

A sentence describes the world's state at the moment when it begins, and nothing else. The world may change while it is
spoken; the next sentence tells of the change. Spoken answers are scored by the same rule
(`training/live_world/word_scores.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from training.live_world.questions import Question
from training.live_world.world import COLOURS, PLACES, THINGS, Event, State, World

NUMBERS = ("No", "One", "Two", "Three", "Four")

# State-bearing words, and which fact each one states. All other words of a sentence are grammar.
SLOTS: dict[str, str] = {
    **dict.fromkeys((*THINGS, "Nothing"), "thing"),
    **dict.fromkeys((*COLOURS, *(c.capitalize() for c in COLOURS), "Gone"), "colour"),
    **dict.fromkeys((*PLACES, "Nowhere"), "place"),
    **dict.fromkeys(("appears", "moves", "turns", "leaves", "quiet"), "happening"),
    **dict.fromkeys(NUMBERS, "count"),
    **dict.fromkeys(("Not", "Now"), "when"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Word:
    """A word. `since_s`: since when the fact that it states is true; None for grammar."""

    text: str  # punctuation attached: "dog."
    since_s: float | None = None

    @property
    def slot(self) -> str | None:
        """Which fact the word states, or None for grammar."""
        return SLOTS.get(self.text.rstrip(".!?,"))


def sentence_at(question: Question, world: World, time_s: float, last_place: int = -1) -> list[Word]:
    """The right sentence that begins at a time; [] when the answer is over.

    last_place: kind "list" only, the place that the sentence before named.
    """
    state = world.state(time_s)
    if question.kind == "list":
        return _list_sentence(state, last_place)
    return _SENTENCES[question.kind](question, world, state)


def is_final_sentence(question: Question, words: Sequence[str]) -> bool:
    """Whether the answer ends after this sentence."""
    if question.kind == "when":
        return bool(words) and words[0] == "Now!"
    if question.kind == "list":
        return bool(words) and words[0] == "Nothing."
    return not question.keeps_on


def _tell(question: Question, world: World, state: State) -> list[Word]:
    event = state.event
    if event is None:
        return _words("All is quiet.", state.quiet_since_s)
    return event_sentence(event)


def event_sentence(event: Event) -> list[Word]:
    """The sentence about an event. The clip's captions are these sentences too."""
    thing, since_s = event.thing, event.start_s
    place = PLACES[thing.place]
    texts = {
        "appears": f"A {thing.colour} {thing.name} appears at {place}.",
        "moves": f"The {thing.name} moves to {place}.",
        "turns": f"The {thing.name} turns {thing.colour}.",
        "leaves": f"The {thing.name} leaves.",
    }
    return _words(texts[event.happening], since_s)


def _list_sentence(state: State, last_place: int) -> list[Word]:
    thing = next((t for t in state.things if t.place > last_place), None)
    if thing is None:
        return _words("Nothing.", state.changed_s) if last_place < 0 else []
    return [
        Word(text="A"),
        Word(text=thing.colour, since_s=thing.colour_since_s),
        Word(text=thing.name, since_s=thing.there_since_s),
        Word(text="at"),
        Word(text=PLACES[thing.place] + ".", since_s=thing.place_since_s),
    ]


def _what(question: Question, world: World, state: State) -> list[Word]:
    thing = state.at(question.place)
    if thing is None:
        return _words("Nothing.", state.empty_since_s[question.place])
    colour_since_s = max(thing.colour_since_s, thing.place_since_s)
    return [
        Word(text="A"),
        Word(text=thing.colour, since_s=colour_since_s),
        Word(text=thing.name + ".", since_s=thing.place_since_s),
    ]


def _where(question: Question, world: World, state: State) -> list[Word]:
    thing = state.named(question.thing)
    if thing is None:
        return _words("Nowhere.", world.absent_since_s(question.thing, state.time_s))
    return [Word(text="At"), Word(text=PLACES[thing.place] + ".", since_s=thing.place_since_s)]


def _colour(question: Question, world: World, state: State) -> list[Word]:
    thing = state.named(question.thing)
    if thing is None:
        return _words("Gone.", world.absent_since_s(question.thing, state.time_s))
    return _words(thing.colour.capitalize() + ".", thing.colour_since_s)


def _count(question: Question, world: World, state: State) -> list[Word]:
    number = len(state.things)
    return _words(f"{NUMBERS[number]} {'thing' if number == 1 else 'things'}.", state.changed_s)


def _when(question: Question, world: World, state: State) -> list[Word]:
    thing = state.named(question.thing)
    since_s = world.absent_since_s(question.thing, state.time_s) if thing is None else thing.there_since_s
    done = (thing is not None) == (question.happening == "appears")
    return _words("Now!" if done else "Not yet.", since_s)


_SENTENCES: dict[str, Callable[[Question, World, State], list[Word]]] = {
    "tell": _tell,
    "what": _what,
    "where": _where,
    "colour": _colour,
    "count": _count,
    "when": _when,
}


def _words(text: str, since_s: float) -> list[Word]:
    """Words of a text whose state-bearing words all became true at the same time."""
    words = [Word(text=t) for t in text.split()]
    return [Word(text=w.text, since_s=since_s if w.slot else None) for w in words]


@dataclass(frozen=True, slots=True, kw_only=True)
class ReferenceAnswer:
    """The right answer of a perfect observer who speaks at an even pace.

    A step is the unit of the pace, as a decoding step is: a word takes one step or more.
    """

    question: Question
    start_s: float
    words: tuple[Word, ...]
    word_steps: tuple[int, ...]  # how many steps each word takes
    steps_per_second: float
    complete: bool  # it ended by itself, not at a limit of time or steps

    @property
    def end_s(self) -> float:
        """Time of the last step: the end of the paper's interval."""
        return self.start_s + (sum(self.word_steps) - 1) / self.steps_per_second


def one_step(word: Word) -> int:
    """Every word takes one step."""
    return 1


def reference_answer(
    question: Question,
    world: World,
    start_s: float,
    steps_per_second: float,
    max_steps: int,
    seen_s: Callable[[float], float] = lambda time_s: time_s,
    steps_of: Callable[[Word], int] = one_step,
) -> ReferenceAnswer:
    """Make the right answer to a question that is asked at `start_s`.

    max_steps: no sentence begins after so many steps. seen_s(t): capture time of the newest frame at time t.
    steps_of: how many steps a word takes.
    """
    words: list[Word] = []
    steps: list[int] = []
    last_place = -1
    complete = False
    while not complete:
        time_s = start_s + sum(steps) / steps_per_second
        if sum(steps) >= max_steps or time_s >= world.duration_s - 0.2:
            break
        spoken = sentence_at(question, world, seen_s(time_s), last_place)
        words += spoken
        steps += [steps_of(word) for word in spoken]
        last_place = listed_place([w.text for w in spoken], last_place)
        complete = not spoken or is_final_sentence(question, [w.text for w in spoken])
    return ReferenceAnswer(
        question=question,
        start_s=start_s,
        words=tuple(words),
        word_steps=tuple(steps),
        steps_per_second=steps_per_second,
        complete=complete,
    )


def listed_place(words: Sequence[str], default: int) -> int:
    """Index of the place that a sentence of a list names; `default` when it names none."""
    places = [PLACES.index(w.rstrip(".")) for w in words if w.rstrip(".") in PLACES]
    return places[-1] if places else default
