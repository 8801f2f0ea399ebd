"""The truth about a live-world clip: which things are in which places, in which colours, and what happens.

A world has a start and a list of events. Pictures, captions, questions, right answers and scores are all computed from
its state at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np

# fmt: off
THINGS = (
    "apple", "ball", "balloon", "banana", "bicycle", "boat", "book", "bus", "butterfly", "cactus", "car",
    "carrot", "cat", "cherry", "chick", "clock", "cookie", "crown", "dog", "drum", "fish", "flower", "frog",
    "ghost", "gift", "grapes", "guitar", "house", "key", "lamp", "lemon", "moon", "mushroom", "octopus",
    "panda", "pear", "penguin", "pig", "pizza", "robot", "rocket", "snail", "snowman", "star", "tent", "tree",
    "turtle", "umbrella",
)
# fmt: on
COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (215, 40, 40),
    "orange": (245, 140, 30),
    "yellow": (245, 220, 50),
    "green": (50, 160, 70),
    "blue": (50, 90, 215),
    "purple": (140, 60, 180),
    "white": (245, 245, 245),
    "black": (25, 25, 25),
}
PLACES = ("top-left", "top", "top-right", "left", "middle", "right", "bottom-left", "bottom", "bottom-right")
HAPPENINGS = ("appears", "moves", "turns", "leaves")
MAX_THINGS = 4
HAPPENING_S = 2.0  # how long an event is visible
MIN_PAUSE_S, MAX_PAUSE_S = 2.2, 4.0  # between the starts of two events

HELD_OUT = "held out for tests"  # comment in the metadata of a video that no training may see
TEST_SEEDS = range(1_000_000, 2_000_000)  # held out: only evaluation uses them

Happening = Literal["appears", "moves", "turns", "leaves"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Thing:
    """A thing on a coloured tile. `*_since_s`: when this became true (0: at the clip's start)."""

    name: str
    colour: str
    place: int
    there_since_s: float = 0.0
    colour_since_s: float = 0.0
    place_since_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something that happens to a thing. `thing`: its state afterwards, or before if it leaves."""

    happening: Happening
    start_s: float
    thing: Thing
    from_place: int

    @property
    def end_s(self) -> float:
        """When it is no longer visible."""
        return self.start_s + HAPPENING_S


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """The world at one time: things in reading order, and the visible event, if any."""

    time_s: float
    things: tuple[Thing, ...]
    event: Event | None
    changed_s: float  # when the number of things last changed
    quiet_since_s: float  # end of the last event that is over
    empty_since_s: tuple[float, ...]  # by place: when it became empty; of no meaning if it is not

    def at(self, place: int) -> Thing | None:
        """The thing at a place."""
        return next((t for t in self.things if t.place == place), None)

    def named(self, name: str) -> Thing | None:
        """The thing of that name. A world never has two of one name."""
        return next((t for t in self.things if t.name == name), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """Everything that is true about a clip."""

    seed: int
    index: int
    duration_s: float
    start: tuple[Thing, ...]
    events: tuple[Event, ...]

    def state(self, time_s: float) -> State:
        """The state at a time. An event takes effect when it starts."""
        things = {t.name: t for t in self.start}
        empty = [0.0] * len(PLACES)
        changed_s = quiet_since_s = 0.0
        visible: Event | None = None
        for event in self.events:
            if event.start_s > time_s:
                break
            thing = event.thing
            if event.happening == "leaves":
                things.pop(thing.name)
            else:
                things[thing.name] = thing
            if event.happening in ("leaves", "moves"):
                empty[event.from_place] = event.start_s
            if event.happening in ("leaves", "appears"):
                changed_s = event.start_s
            visible = event if time_s < event.end_s else None
            quiet_since_s = event.end_s if visible is None else quiet_since_s
        ordered = tuple(sorted(things.values(), key=lambda t: t.place))
        return State(
            time_s=time_s,
            things=ordered,
            event=visible,
            changed_s=changed_s,
            quiet_since_s=quiet_since_s,
            empty_since_s=tuple(empty),
        )

    def absent_since_s(self, name: str, time_s: float) -> float:
        """When the thing of that name last left, or 0 if it never did."""
        left = (e.start_s for e in self.events if e.happening == "leaves" and e.thing.name == name)
        return max((s for s in left if s <= time_s), default=0.0)

    def as_json(self) -> dict[str, Any]:
        """Plain values for a JSON file; `World.from_json` reads them."""
        return asdict(self)

    @staticmethod
    def from_json(values: dict[str, Any]) -> World:
        """The inverse of `as_json`."""
        start = tuple(Thing(**t) for t in values["start"])
        events = tuple(Event(**(e | {"thing": Thing(**e["thing"])})) for e in values["events"])
        parsed: dict[str, Any] = {"start": start, "events": events}
        return World(**(values | parsed))


def make_world(seed: int, index: int, duration_s: float = 20.0) -> World:
    """Make the world of a clip. The same seed and index always give the same world."""
    rng = np.random.default_rng([seed, index])
    names = [str(n) for n in rng.permutation(THINGS)[: rng.integers(1, MAX_THINGS)]]
    places = rng.permutation(len(PLACES))
    start = tuple(
        Thing(name=n, colour=str(rng.choice(list(COLOURS))), place=int(p))
        for n, p in zip(names, places, strict=False)
    )
    things = {t.name: t for t in start}
    events: list[Event] = []
    time_s = float(rng.uniform(0.6, MAX_PAUSE_S))
    while time_s < duration_s - 0.5:
        event = _next_event(rng, things, round(time_s, 3))
        things.pop(event.thing.name, None)
        if event.happening != "leaves":
            things[event.thing.name] = event.thing
        events.append(event)
        time_s += float(rng.uniform(MIN_PAUSE_S, MAX_PAUSE_S))
    return World(seed=seed, index=index, duration_s=duration_s, start=start, events=tuple(events))


def _next_event(rng: np.random.Generator, things: dict[str, Thing], time_s: float) -> Event:
    possible: list[Happening] = []
    if len(things) < MAX_THINGS:
        possible.append("appears")
    if things:
        possible.extend(("moves", "turns", "leaves"))
    happening: Happening = possible[int(rng.integers(len(possible)))]
    taken = {t.place for t in things.values()}
    free = [p for p in range(len(PLACES)) if p not in taken]
    place = int(rng.choice(free))
    if happening == "appears":
        name = str(rng.choice([n for n in THINGS if n not in things]))
        colour = str(rng.choice(list(COLOURS)))
        thing = Thing(name=name, colour=colour, place=place, **_since(time_s, "there", "colour", "place"))
        return Event(happening=happening, start_s=time_s, thing=thing, from_place=place)
    old = things[str(rng.choice(sorted(things)))]
    if happening == "moves":
        thing = replace(old, place=place, place_since_s=time_s)
    elif happening == "turns":
        colour = str(rng.choice([c for c in COLOURS if c != old.colour]))
        thing = replace(old, colour=colour, colour_since_s=time_s)
    else:
        thing = old
    return Event(happening=happening, start_s=time_s, thing=thing, from_place=old.place)


def _since(time_s: float, *facts: Sequence[str]) -> dict[str, Any]:
    return {f"{fact}_since_s": time_s for fact in facts}
