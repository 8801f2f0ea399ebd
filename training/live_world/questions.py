"""Questions about the live world: their kinds, their wordings, and how questions are sampled."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from training.live_world.world import PLACES, THINGS, World

Kind = Literal["tell", "list", "what", "where", "colour", "count", "when"]
KINDS: tuple[Kind, ...] = ("tell", "list", "what", "where", "colour", "count", "when")
KIND_SHARES = (0.28, 0.10, 0.17, 0.16, 0.11, 0.08, 0.10)  # how often each kind is sampled by default

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A kind of question and its subject. `keeps_on`: the answer has one sentence after another, without end."""

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


def sample_question(
    rng: np.random.Generator, world: World, ask_s: float, kind_shares: Sequence[float] = KIND_SHARES
) -> Question:
    """Sample a question to ask at a time, mostly about things and places with something near that time.

    kind_shares: how often each kind is sampled; they add up to 1.
    """
    kind = str(rng.choice(KINDS, p=kind_shares))
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
        # "Tell me when" something that is so already is answered at once: rare, but the model must learn it.
        happening="leaves" if present != (rng.random() < 0.15) else "appears",
        wording=int(rng.integers(12)),
    )
