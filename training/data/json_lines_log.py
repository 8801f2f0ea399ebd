"""Rows that survive a kill: one JSON line each, appended at once, read again when the work goes on."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any


class JsonLinesLog:
    """A JSON-lines file that only grows. A last line that a kill cut short is dropped when the file is opened."""

    def __init__(self, path: Path) -> None:
        """Raises ValueError when a line that is not the last is no JSON object."""
        self.path = path
        self.rows: list[dict[str, Any]] = []
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = path.read_bytes().split(b"\n") if path.is_file() else [b""]
        if lines.pop():  # what comes after the last line break
            path.write_bytes(b"".join(line + b"\n" for line in lines))
        for number, line in enumerate(lines, start=1):
            row = _json(line)
            if not isinstance(row, dict):
                raise ValueError(f"{path}:{number}: got {line[:80]!r}, wanted a JSON object")
            self.rows.append(row)

    def add(self, row: dict[str, Any]) -> None:
        """Keep a row: in the file when this returns."""
        with self.path.open("a") as file:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
        self.rows.append(row)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self.rows)


def _json(line: bytes) -> Any:
    try:
        return json.loads(line)
    except ValueError:
        return None
