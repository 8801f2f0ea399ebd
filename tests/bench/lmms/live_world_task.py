"""What the two tasks need beside their YAML files. lmms-eval imports it; it imports nothing of ours."""

from __future__ import annotations

from typing import Any

from PIL import Image

COLOURS = ("Red", "Orange", "Yellow", "Green", "Blue", "Purple", "White", "Black")


def video(doc: dict[str, Any]) -> list[str]:
    """The clip's path."""
    return [doc["video"]]


def picture(doc: dict[str, Any]) -> list[Image.Image]:
    """The picture itself, as image benchmarks give it."""
    with Image.open(doc["picture"]) as image:
        return [image.convert("RGB")]


def colours(doc: dict[str, Any]) -> list[str]:
    """What there is to choose from."""
    return [f"{colour}." for colour in COLOURS]


def said_right(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """1 when the answer is the right sentence, but for its full stop."""
    return {"said_right": float(results[0].strip().rstrip(".") == doc["answer"].rstrip("."))}
