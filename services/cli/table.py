"""A table in the terminal."""

from __future__ import annotations

from collections.abc import Callable, Sequence


def text_table(rows: Sequence[Sequence[str]], *, align: Callable[[str, int], str] = str.ljust) -> str:
    """Rows in aligned columns; the first row is the head. `align`: str.ljust or str.rjust."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(map(align, row, widths)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)
