"""Functions that the tasks' YAML files name. lmms-eval imports this file from a copy beside them."""

from __future__ import annotations

from typing import Any

from PIL import Image

COLOURS = ("Red", "Orange", "Yellow", "Green", "Blue", "Purple", "White", "Black")


def video(doc: dict[str, Any]) -> list[str]:
    """The clip's path."""
    return [doc["video"]]


def picture(doc: dict[str, Any]) -> list[Image.Image]:
    """The picture."""
    with Image.open(doc["picture"]) as image:
        return [image.convert("RGB")]


def colours(doc: dict[str, Any]) -> list[str]:
    """The choices."""
    return [f"{colour}." for colour in COLOURS]


def said_right(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """1 if the answer is the right sentence, with or without its full stop."""
    return {"said_right": float(results[0].strip().rstrip(".") == doc["answer"].rstrip("."))}


def next_round(
    doc: dict[str, Any],
    lmms_eval_specific_kwargs: dict[str, Any] | None = None,
    previous_output: list[str] | None = None,
    round_idx: int | None = None,
    previous_round_info: Any = None,
) -> Any:
    """The question; in the second round, the number of things; then the end."""
    if round_idx is None:
        return doc["instruction"]
    return [doc["video"]], "How many things are there now?", round_idx == 2, previous_output, None


def both_right(doc: dict[str, Any], results: list[list[str]]) -> dict[str, float]:
    """The share of right answers of the two."""
    wanted = (doc["answer"], doc["count"])
    pairs = zip(results[0], wanted, strict=True)
    return {"said_right": sum(said.strip().rstrip(".") == right.rstrip(".") for said, right in pairs) / 2}
