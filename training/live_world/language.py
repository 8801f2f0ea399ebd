"""What there is to ask and to say about the live world.

A sentence is made from the world's state at the moment when it begins, and from nothing else; while it is being spoken
the world may move on, and the next sentence tells of that. This is the rule by which spoken answers are judged too
(`training/live_world/judge.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from training.live_world.world import COLOURS, PLACES, THINGS, Event, State, World

Kind = Literal["tell", "list", "what", "where", "colour", "count", "when"]
KINDS: tuple[Kind, ...] = ("tell", "list", "what", "where", "colour", "count", "when")
SHARES = (0.28, 0.10, 0.17, 0.16, 0.11, 0.08, 0.10)  # of the kinds, where none are given
NUMBERS = ("No", "One", "Two", "Three", "Four")

# State-bearing words, by what they tell. All other words of a sentence are grammar.
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
    """A word and, if it bears state, since when what it tells is so."""

    text: str  # punctuation attached: "dog."
    since_s: float | None = None

    @property
    def slot(self) -> str | None:
        """What the word tells of, or None for grammar."""
        return SLOTS.get(self.text.rstrip(".!?,"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A kind of question and what it is about. `keeps_on`: the answer goes on, sentence after sentence."""

    kind: Kind
    keeps_on: bool
    thing: str = ""
    place: int = -1
    happening: Literal["appears", "leaves"] = "appears"
    wording: int = 0

    @property
    def instruction(self) -> str:
        """The question in words."""
        wordings = WORDINGS[self.kind, self.keeps_on]
        place = PLACES[self.place]
        return wordings[self.wording % len(wordings)].format(
            thing=self.thing, place=place, happens=self.happening
        )


WORDINGS: dict[tuple[Kind, bool], tuple[str, ...]] = {
    ("tell", True): (
        "Tell me what happens from now on.",
        "What is happening?",
        "Describe what happens.",
        "Watch and tell me what happens.",
    ),
    ("list", False): (
        "What do you see now?",
        "What is there now?",
        "Name everything you see.",
        "List all things.",
    ),
    ("what", False): (
        "What is at {place} now?",
        "What do you see at {place}?",
        "Is there anything at {place}?",
    ),
    ("what", True): ("Watch {place} and tell me what is there.", "Keep telling me what is at {place}."),
    ("where", False): ("Where is the {thing} now?", "Where do you see the {thing}?", "Find the {thing}."),
    ("where", True): ("Follow the {thing}.", "Keep telling me where the {thing} is."),
    ("colour", False): ("What colour is the {thing} now?", "Which colour has the {thing}?"),
    ("colour", True): ("Keep telling me the colour of the {thing}.", "Watch the colour of the {thing}."),
    ("count", False): ("How many things are there now?", "How many do you see?", "Count the things."),
    ("count", True): ("Keep counting the things.", "Keep telling me how many things there are."),
    ("when", True): ("Tell me when the {thing} {happens}.", "Say now when the {thing} {happens}."),
}


def sentence(question: Question, world: World, time_s: float, last_place: int = -1) -> list[Word]:
    """The sentence that begins at a time, after one that told of `last_place` (kind "list" only); [] = the end."""
    state = world.state(time_s)
    if question.kind == "list":
        return _list_sentence(state, last_place)
    return _SENTENCES[question.kind](question, world, state)


def is_last(question: Question, words: Sequence[str]) -> bool:
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
    """What happens, in words; they are also the captions."""
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
    """Every state-bearing word of a text tells of the same fact."""
    words = [Word(text=t) for t in text.split()]
    return [Word(text=w.text, since_s=since_s if w.slot else None) for w in words]


def pick_question(
    rng: np.random.Generator, world: World, ask_s: float, shares: Sequence[float] = SHARES
) -> Question:
    """A question worth asking at that time: mostly about things and places where something is, was, or will be.

    `shares`: of the kinds of question.
    """
    kind = str(rng.choice(KINDS, p=shares))
    keeps_on = (kind in ("tell", "when")) or (kind != "list" and bool(rng.random() < 0.5))
    near = [e for e in world.events if ask_s - 2.0 < e.start_s < ask_s + 8.0]
    now = world.state(ask_s).things
    things = [t.name for t in now] + [e.thing.name for e in near] * 2
    places = [t.place for t in now] + [p for e in near for p in (e.thing.place, e.from_place)]
    if rng.random() < 0.12 or not things:
        things = list(THINGS)
    if rng.random() < 0.12 or not places:
        places = list(range(len(PLACES)))
    thing = str(rng.choice(things))
    present = any(t.name == thing for t in now)
    return Question(
        kind=kind,  # type: ignore[arg-type]
        keeps_on=keeps_on,
        thing=thing,
        place=int(rng.choice(places)),
        # Asking for what is so already is answered at once: rare, but it must be learnt.
        happening="leaves" if present != (rng.random() < 0.15) else "appears",
        wording=int(rng.integers(12)),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """The right answer when speaking at an even pace, so many beats a second; a word takes one, or more."""

    question: Question
    start_s: float
    words: tuple[Word, ...]
    beats: tuple[int, ...]  # of each word
    beats_per_second: float
    complete: bool  # it ended by itself, not because the time or the words were up

    @property
    def end_s(self) -> float:
        """When its last beat comes: the end of the paper's interval."""
        return self.start_s + (sum(self.beats) - 1) / self.beats_per_second


def one_beat(word: Word) -> int:
    """All words take the same time."""
    return 1


def answer(
    question: Question,
    world: World,
    start_s: float,
    beats_per_second: float,
    max_beats: int,
    seen_s: Callable[[float], float] = lambda time_s: time_s,
    beats_of: Callable[[Word], int] = one_beat,
) -> Answer:
    """Speak as a perfect observer would. `seen_s(t)` is the capture time of the newest picture there is at t.

    No sentence begins after `max_beats`.
    """
    words: list[Word] = []
    beats: list[int] = []
    last_place = -1
    complete = False
    while not complete:
        time_s = start_s + sum(beats) / beats_per_second
        if sum(beats) >= max_beats or time_s >= world.duration_s - 0.2:
            break
        spoken = sentence(question, world, seen_s(time_s), last_place)
        words += spoken
        beats += [beats_of(word) for word in spoken]
        last_place = told_place([w.text for w in spoken], last_place)
        complete = not spoken or is_last(question, [w.text for w in spoken])
    return Answer(
        question=question,
        start_s=start_s,
        words=tuple(words),
        beats=tuple(beats),
        beats_per_second=beats_per_second,
        complete=complete,
    )


def told_place(words: Sequence[str], otherwise: int) -> int:
    """The place that a sentence of a list tells of, as a number."""
    places = [PLACES.index(w.rstrip(".")) for w in words if w.rstrip(".") in PLACES]
    return places[-1] if places else otherwise
