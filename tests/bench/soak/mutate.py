"""Random changes to JSON values: one part of a good request becomes an edge value, is repeated, or is gone."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Iterator
from random import Random
from typing import Any

HUGE_NUMBER = "a number of 5,000 digits"  # json.dumps refuses such a number, so the text is put in afterwards


def _nested(depth: int) -> Any:
    value: Any = []
    for _ in range(depth):
        value = [value]
    return value


EDGES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2**31, -(2**31) - 1, 2**63, 10**30, HUGE_NUMBER,
    0.0, -0.0, 1e-39, 1e-11, 1e-4, 1e308, -1e308, math.nan, math.inf, -math.inf,
    "", " ", "\n", "0", "null", "x" * 70_000, "\0", "\ud800", "\u202e\u0301\U0001f4f7", "café",
    "camera://", "camera://../../etc", "camera://soak-0", "file:///etc/passwd", "http://127.0.0.1:1/",
    "data:image/png;base64,AAAA", "data:video/mp4;base64,####", "Authorization: x\r\nEvil: y",
    [], {}, [[]], [None], {"": ""}, _nested(300),
)  # fmt: skip


def mutated(value: Any, random: Random, *, num_changes: int = 1) -> Any:
    """A copy of a JSON value with random changes."""
    holder = {"value": copy.deepcopy(value)}
    for _ in range(num_changes):
        parent, key = random.choice(list(_places(holder)))
        _change(parent, key, random)
    return holder["value"]


def to_json(value: Any) -> bytes:
    """The value as a client would send it, NaN, lone surrogates and huge numbers included."""
    return json.dumps(value).replace(f'"{HUGE_NUMBER}"', "9" * 5000).encode()


def _places(parent: Any) -> Iterator[tuple[Any, Any]]:
    for key in list(parent) if isinstance(parent, dict) else range(len(parent)):
        yield parent, key
        if isinstance(parent[key], dict | list):
            yield from _places(parent[key])


def _change(parent: Any, key: Any, random: Random) -> None:
    match random.randrange(6):
        case 0 if parent.keys() != {"value"} if isinstance(parent, dict) else True:
            del parent[key]
        case 1 if isinstance(parent, list):
            parent += copy.deepcopy([parent[key]] * random.choice((1, 10, 300)))
        case 2 if isinstance(parent[key], dict):
            parent[key][random.choice(("surprise", "", "temperature", "x" * 1000))] = copy.deepcopy(
                random.choice(EDGES)
            )
        case 3:
            parent[key] = [parent[key]]
        case _:
            parent[key] = copy.deepcopy(random.choice(EDGES))
