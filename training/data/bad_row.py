"""What becomes of data that cannot be used: it is named, counted and skipped; too large a share of it stops the run."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


class BadRow(ValueError):
    """Data that cannot be used. `reason`: a few words to count by; `detail`: what was got and what is wanted."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(reason, detail)
        self.reason, self.detail = reason, detail

    def __str__(self) -> str:
        return f"{self.reason}: {self.detail}"


@dataclass(kw_only=True)
class BadRows:
    """Counts good and bad rows, says each bad one on stderr (the first few of a reason), and stops at a share.

    max_share: more bad rows than this share of all stop the run with ValueError, as soon as `enough` were seen, or
    when `finish` is called. `what` they are, for the message.
    """

    ENOUGH = 200
    SHOWN = 5

    max_share: float = 0.05
    enough: int = ENOUGH
    what: str = "rows"
    num_good: int = 0
    reasons: Counter[str] = field(default_factory=Counter[str])
    first: dict[str, str] = field(default_factory=dict[str, str])

    def __post_init__(self) -> None:
        if not 0 <= self.max_share <= 1:
            raise ValueError(f"the largest share of bad rows: got {self.max_share}, wanted 0 to 1")

    @property
    def num_bad(self) -> int:
        """Bad rows of all reasons."""
        return self.reasons.total()

    def good(self, num: int = 1) -> None:
        """Count good rows."""
        self.num_good += num

    def skip(self, where: str, error: BadRow) -> None:
        """Count and name a bad row; `where`: its file and line, or its video."""
        self.reasons[error.reason] += 1
        self.first.setdefault(error.reason, f"{where}: {error.detail}")
        if self.reasons[error.reason] <= self.SHOWN:
            print(f"skipped {where}: {error}", file=sys.stderr)
        if self.num_good + self.num_bad >= self.enough:
            self.finish()

    def finish(self) -> None:
        """Raise ValueError when too many rows were bad."""
        num = self.num_good + self.num_bad
        if self.num_bad > self.max_share * num:
            share = f"{self.num_bad} of {num} {self.what} are bad ({self.num_bad / num:.1%})"
            raise ValueError(f"{share}, more than the limit of {self.max_share:.1%}: {self.summary()}")

    def summary(self) -> str:
        """Each reason with its number and its first row."""
        parts = (
            f"{reason} {num} (first: {self.first[reason]})" for reason, num in self.reasons.most_common()
        )
        return "; ".join(parts) or f"no bad {self.what}"


def as_mapping(name: str, value: object) -> Mapping[str, Any]:
    """The value, if it is an object; else BadRow. So do the next four with theirs."""
    if isinstance(value, Mapping):
        return value
    raise _wrong(name, value, "an object")


def as_list(name: str, value: object) -> Sequence[Any]:
    """A list."""
    if isinstance(value, list | tuple):
        return value
    raise _wrong(name, value, "a list")


def as_text(name: str, value: object) -> str:
    """A text."""
    if isinstance(value, str):
        return value
    raise _wrong(name, value, "a text")


def as_number(name: str, value: object) -> float:
    """A number; a truth value is none."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    raise _wrong(name, value, "a number")


def as_interval(name: str, value: object) -> tuple[float, float]:
    """A list of two numbers."""
    numbers = as_list(name, value)
    if len(numbers) != 2:
        raise _wrong(name, value, "a start and an end")
    return as_number(name, numbers[0]), as_number(name, numbers[1])


def _wrong(name: str, value: object, wanted: str) -> BadRow:
    return BadRow("wrong type", f"{name}: got {value!r:.80}, wanted {wanted}")


def object_in(text: str) -> Mapping[str, Any]:
    """The JSON object that begins with a reply's first brace, whatever stands around it; raises BadRow."""
    try:
        value, _ = json.JSONDecoder().raw_decode(text, max(text.find("{"), 0))
    except (ValueError, RecursionError) as error:
        raise BadRow("no JSON", f"got {text!r:.120}: {error}") from error
    return as_mapping("reply", value)
