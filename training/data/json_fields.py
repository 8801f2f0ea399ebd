"""Checks the types of JSON fields. A wrong type raises BadRow with the name of the field."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from training.data.bad_row import BadRow


def as_mapping(name: str, value: object) -> Mapping[str, Any]:
    """The value as an object. Raises BadRow if it is not one."""
    if isinstance(value, Mapping):
        return value
    raise _wrong(name, value, "an object")


def as_list(name: str, value: object) -> Sequence[Any]:
    """The value as a list. Raises BadRow if it is not one."""
    if isinstance(value, list | tuple):
        return value
    raise _wrong(name, value, "a list")


def as_text(name: str, value: object) -> str:
    """The value as a text. Raises BadRow if it is not one."""
    if isinstance(value, str):
        return value
    raise _wrong(name, value, "a text")


def as_number(name: str, value: object) -> float:
    """The value as a number. Raises BadRow if it is not one; true and false are not numbers."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    raise _wrong(name, value, "a number")


def as_interval(name: str, value: object) -> tuple[float, float]:
    """The value as two numbers. Raises BadRow if it is not a list of two numbers."""
    numbers = as_list(name, value)
    if len(numbers) != 2:
        raise _wrong(name, value, "a start and an end")
    return as_number(name, numbers[0]), as_number(name, numbers[1])


def _wrong(name: str, value: object, wanted: str) -> BadRow:
    return BadRow("wrong type", f"{name}: got {value!r:.80}, wanted {wanted}")


def object_in(text: str) -> Mapping[str, Any]:
    """The JSON object that starts at the first brace of a text. Raises BadRow if there is none."""
    try:
        value, _ = json.JSONDecoder().raw_decode(text, max(text.find("{"), 0))
    except (ValueError, RecursionError) as error:
        raise BadRow("no JSON", f"got {text!r:.120}: {error}") from error
    return as_mapping("reply", value)
