"""A log of JSON lines that survives a kill. Each row is written at once and read again at the next start."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any


class JsonLinesLog:
    """An append-only file of JSON lines. Opening it drops an incomplete last line, which a kill can leave."""

    def __init__(self, path: Path) -> None:
        """Raises ValueError if a complete line is not a JSON object."""
        self.path = path
        self.rows: list[dict[str, Any]] = []
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = path.read_bytes().split(b"\n") if path.is_file() else [b""]
        if lines.pop():  # text after the last line break
            path.write_bytes(b"".join(line + b"\n" for line in lines))
        for number, line in enumerate(lines, start=1):
            row = _json(line)
            if not isinstance(row, dict):
                raise ValueError(f"{path}:{number}: got {line[:80]!r}, wanted a JSON object")
            self.rows.append(row)

    def add(self, row: dict[str, Any]) -> None:
        """Append a row. The file has it when this returns."""
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
