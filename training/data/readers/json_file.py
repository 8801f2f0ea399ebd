"""Reading a data set's JSON file, as large as it may be, without losing what stands in it twice."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


class Repeating(dict[str, Any]):
    """An object of a JSON file that has names twice; `again` holds what came after the first of a name."""

    def __init__(self, pairs: list[tuple[str, Any]]) -> None:
        super().__init__()
        self.again: list[tuple[str, Any]] = []
        for name, value in pairs:
            if name in self:
                self.again.append((name, value))
            else:
                self[name] = value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    plain = dict(pairs)
    return plain if len(plain) == len(pairs) else Repeating(pairs)


def read_json(path: Path) -> object:
    """What a JSON file holds. FileNotFoundError when it is not there, ValueError when it is none."""
    try:
        return json.loads(path.read_bytes(), object_pairs_hook=_object)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: got no JSON: {error}") from error
