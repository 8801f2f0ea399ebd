"""The state of a world before, at and after each event, and states that never occur."""

from __future__ import annotations

import hashlib
import json
from itertools import pairwise

import pytest

from tests.training.sample_worlds import CAT, DOG, GREEN_DOG, MOVED_DOG, NEW_CAR, STORY, many_worlds, moments
from training.live_world.world import (
    COLOURS,
    HAPPENING_S,
    HAPPENINGS,
    MAX_THINGS,
    PLACES,
    TEST_SEEDS,
    THINGS,
    Thing,
    World,
    make_world,
)

JUST_BEFORE, JUST_AFTER = -0.001, HAPPENING_S + 0.001


@pytest.mark.parametrize(
    ("start_s", "before", "after"),
    [
        (2.0, (DOG, CAT), (DOG, NEW_CAR, CAT)),
        (5.0, (DOG, NEW_CAR, CAT), (MOVED_DOG, NEW_CAR, CAT)),
        (8.0, (MOVED_DOG, NEW_CAR, CAT), (GREEN_DOG, NEW_CAR, CAT)),
        (11.0, (GREEN_DOG, NEW_CAR, CAT), (GREEN_DOG, NEW_CAR)),
    ],
    ids=HAPPENINGS,
)
def test_a_happening_counts_from_its_start_and_is_seen_for_a_while(
    start_s: float, before: tuple[Thing, ...], after: tuple[Thing, ...]
) -> None:
    event = next(e for e in STORY.events if e.start_s == start_s)
    earlier = STORY.state(start_s + JUST_BEFORE)
    assert (earlier.things, earlier.event) == (before, None)
    for time_s in (start_s, start_s + HAPPENING_S - 0.001):
        state = STORY.state(time_s)
        assert (state.things, state.event) == (after, event)
    later = STORY.state(start_s + JUST_AFTER)
    assert (later.things, later.event) == (after, None)
    assert later.quiet_since_s == event.end_s == start_s + HAPPENING_S


def test_since_when_things_are_more_or_fewer() -> None:
    times = (1.9, 2.0, 10.9, 11.0, 13.9)
    assert [STORY.state(t).changed_s for t in times] == [0.0, 2.0, 2.0, 11.0, 11.0]


def test_since_when_it_is_quiet() -> None:
    times = (1.9, 4.5, 7.5, 10.5, 13.5)
    assert [STORY.state(t).quiet_since_s for t in times] == [0.0, 4.0, 7.0, 10.0, 13.0]


def test_since_when_a_place_is_empty() -> None:
    assert STORY.state(4.9).empty_since_s == (0.0,) * 9
    assert STORY.state(5.0).empty_since_s[DOG.place] == 5.0
    assert STORY.state(11.0).empty_since_s[CAT.place] == 11.0


def test_since_when_a_thing_is_away() -> None:
    assert STORY.absent_since_s("cat", 10.9) == 0.0
    assert STORY.absent_since_s("cat", 13.0) == 11.0
    assert STORY.absent_since_s("ghost", 13.0) == 0.0


def test_finding_things_by_place_and_name() -> None:
    state = STORY.state(9.0)
    assert state.at(2) == state.named("dog") == GREEN_DOG
    assert state.at(0) is None
    assert state.named("ghost") is None


def test_things_never_share_a_place_or_a_name_and_are_never_too_many() -> None:
    for world in many_worlds():
        for time_s in moments(world):
            things = world.state(time_s).things
            assert len({t.place for t in things}) == len({t.name for t in things}) == len(things)
            assert len(things) <= MAX_THINGS
            assert [t.place for t in things] == sorted(t.place for t in things)


def test_happenings_never_overlap_and_lie_within_the_clip() -> None:
    for world in many_worlds():
        assert all(a.end_s < b.start_s for a, b in pairwise(world.events))
        assert all(0.5 < e.start_s < world.duration_s - 0.4 for e in world.events)


def test_each_happening_changes_what_it_says() -> None:
    for world in many_worlds():
        for event in world.events:
            name = event.thing.name
            before = world.state(event.start_s + JUST_BEFORE).named(name)
            after = world.state(event.start_s).named(name)
            assert (before is None) == (event.happening == "appears")
            assert (after is None) == (event.happening == "leaves")
            if before is not None and after is not None:
                assert (before.place != after.place) == (event.happening == "moves")
                assert (before.colour != after.colour) == (event.happening == "turns")
                assert event.from_place == before.place


def test_what_is_so_since_a_time_was_not_so_before() -> None:
    for world in many_worlds(60):
        for time_s in moments(world):
            for thing in world.state(time_s).things:
                since = (
                    ("there", thing.there_since_s),
                    ("colour", thing.colour_since_s),
                    ("place", thing.place_since_s),
                )
                for fact, since_s in since:
                    assert since_s <= time_s
                    old = world.state(since_s + JUST_BEFORE).named(thing.name) if since_s else None
                    assert old is None or (fact != "there" and getattr(old, fact) != getattr(thing, fact))


def test_there_is_enough_to_tell_of_and_all_of_it_comes_up() -> None:
    assert len({*THINGS, *COLOURS, *PLACES, *HAPPENINGS}) >= 60
    things = [t for world in many_worlds(300) for t in (*world.start, *(e.thing for e in world.events))]
    assert {t.name for t in things} == set(THINGS)
    assert {t.colour for t in things} == set(COLOURS)
    assert {t.place for t in things} == set(range(len(PLACES)))
    assert {e.happening for world in many_worlds() for e in world.events} == set(HAPPENINGS)


def test_a_world_survives_json() -> None:
    for world in (STORY, make_world(7, 3)):
        assert World.from_json(json.loads(json.dumps(world.as_json()))) == world


def test_the_same_numbers_give_the_same_world_and_others_another() -> None:
    assert make_world(7, 3) == make_world(7, 3)
    worlds = [make_world(seed, index) for seed in (7, 8, TEST_SEEDS.start) for index in range(20)]
    assert len({json.dumps(w.as_json()["events"]) for w in worlds}) == len(worlds)


def test_worlds_are_what_they_were_when_the_model_was_trained() -> None:
    worlds = json.dumps([make_world(TEST_SEEDS.start, index).as_json() for index in range(20)])
    assert hashlib.sha256(worlds.encode()).hexdigest()[:16] == "c847fb560765232b"
