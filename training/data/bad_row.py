"""Bad rows are reported, counted and skipped. The run stops if their share is too large."""

from __future__ import annotations

import sys
from collections import Counter
from dataclasses import dataclass, field


class BadRow(ValueError):
    """Data that cannot be used. `reason`: a few words to count by; `detail`: the value and what was wanted."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(reason, detail)
        self.reason, self.detail = reason, detail

    def __str__(self) -> str:
        return f"{self.reason}: {self.detail}"


@dataclass(kw_only=True)
class BadRowCounter:
    """Counts good and bad rows, and reports the first bad ones of each reason on stderr.

    max_share: a larger share of bad rows raises ValueError, after `min_rows` rows or in `check_share`.
    unit: noun for the rows in messages.
    """

    MIN_ROWS = 200
    NUM_SHOWN = 5

    max_share: float = 0.05
    min_rows: int = MIN_ROWS
    unit: str = "rows"
    num_good: int = 0
    reasons: Counter[str] = field(default_factory=Counter[str])
    first_of: dict[str, str] = field(default_factory=dict[str, str])

    def __post_init__(self) -> None:
        if not 0 <= self.max_share <= 1:
            raise ValueError(f"the largest share of bad rows: got {self.max_share}, wanted 0 to 1")

    @property
    def num_bad(self) -> int:
        """Bad rows of all reasons."""
        return self.reasons.total()

    def add_good(self, num: int = 1) -> None:
        """Count good rows."""
        self.num_good += num

    def skip(self, where: str, error: BadRow) -> None:
        """Count and report a bad row; `where`: its file and line, or its video."""
        self.reasons[error.reason] += 1
        self.first_of.setdefault(error.reason, f"{where}: {error.detail}")
        if self.reasons[error.reason] <= self.NUM_SHOWN:
            print(f"skipped {where}: {error}", file=sys.stderr)
        if self.num_good + self.num_bad >= self.min_rows:
            self.check_share()

    def check_share(self) -> None:
        """Raise ValueError if too many rows were bad."""
        num = self.num_good + self.num_bad
        if self.num_bad > self.max_share * num:
            share = f"{self.num_bad} of {num} {self.unit} are bad ({self.num_bad / num:.1%})"
            raise ValueError(f"{share}, more than the limit of {self.max_share:.1%}: {self.summary()}")

    def summary(self) -> str:
        """Each reason with its number and its first row."""
        parts = (
            f"{reason} {num} (first: {self.first_of[reason]})" for reason, num in self.reasons.most_common()
        )
        return "; ".join(parts) or f"no bad {self.unit}"
