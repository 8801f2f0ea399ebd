"""Reads JSON files of data sets: whole, with repeated names of an object kept, or a list entry by entry."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import ijson


class RepeatedNames(dict[str, Any]):
    """An object of a JSON file that has a name twice; `repeated` holds all values but the first."""

    def __init__(self, pairs: list[tuple[str, Any]]) -> None:
        super().__init__()
        self.repeated: list[tuple[str, Any]] = []
        for name, value in pairs:
            if name in self:
                self.repeated.append((name, value))
            else:
                self[name] = value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    plain = dict(pairs)
    return plain if len(plain) == len(pairs) else RepeatedNames(pairs)


def read_json(path: Path) -> object:
    """The value of a JSON file. Raises FileNotFoundError if it is missing, ValueError if it is not JSON."""
    try:
        return json.loads(path.read_bytes(), object_pairs_hook=_object)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: got no JSON: {error}") from error


def all_entries(values: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """All entries of an object, those with a repeated name included."""
    yield from values.items()
    yield from getattr(values, "repeated", ())


def list_entries(path: Path) -> Iterator[object]:
    """The entries of a file that is a JSON list, of any size. The same errors as `read_json`."""
    with path.open("rb") as file:
        if _first_byte(file) != b"[":
            raise ValueError(f"{path}: wanted a JSON list")
        try:
            yield from ijson.items(file, "item", use_float=True)
        except ijson.JSONError as error:
            raise ValueError(f"{path}: got no JSON: {error}") from error


def _first_byte(file: BinaryIO) -> bytes:
    """The first one that is no white space. The file is at its start again afterwards."""
    while (byte := file.read(1)).isspace():
        pass
    file.seek(0)
    return byte
