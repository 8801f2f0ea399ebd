"""The log of a run: one JSON line for each report, and a line in the terminal."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path


class RunLog:
    """Appends reports to `log.jsonl` in a run folder and prints them."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / "log.jsonl"
        self.started_s = time.monotonic()

    @property
    def elapsed_s(self) -> float:
        """Seconds since the run started."""
        return time.monotonic() - self.started_s

    def report(self, step: int, **values: float) -> None:
        """Write and print the values of a step."""
        row = {
            "step": step,
            "elapsed_s": round(self.elapsed_s, 1),
            **{k: round(v, 6) for k, v in values.items()},
        }
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")
        shown = "  ".join(f"{k} {v:.4g}" for k, v in row.items())
        sys.stderr.write(shown + "\n")  # Ray Train shows lines of stdout twice
        sys.stderr.flush()
