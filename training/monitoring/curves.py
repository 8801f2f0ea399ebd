"""Draws the curves of a run from its log: the losses, and the share of right tokens.

python training/monitoring/curves.py runs/tiny/run curve.png
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

NO_CURVE = {"step", "elapsed_s", "done", "lr", "norm", "bad", "skipped", "left_s", "memory_gb"} | {
    *("tokens_s", "frames_s", "mfu", "data_wait")  # values of the machine, not of the model
}
Rows = list[dict[str, float]]


def read_log(run: Path) -> Rows:
    """Reports in the order of their steps. Steps after a restart replace the same steps from before it.

    Raises FileNotFoundError if the folder has no log, ValueError if the log has no report.
    """
    path = run / "log.jsonl"
    if not path.is_file():
        raise FileNotFoundError(f"{run} is not a run folder: it has no log.jsonl")
    rows: Rows = []
    for line in path.read_text().splitlines():
        row: dict[str, float] = json.loads(line)
        rows = [*(r for r in rows if r["step"] < row["step"]), row]
    if not rows:
        raise ValueError(f"{path} has no report yet")
    return rows


def names_of(rows: Rows) -> tuple[list[str], list[str]]:
    """The names of the values to draw: losses (any size), and shares (0 to 1)."""
    names = [name for name in rows[-1] if name not in NO_CURVE]
    losses = [n for n in names if n == "loss" or any(r.get(n, 0.0) > 1.0 for r in rows)]
    return losses, [n for n in names if n not in losses]


def draw(rows: Rows, out: Path) -> None:
    """Write the picture: losses on the left axis, shares on the right axis, over the steps."""
    from matplotlib import pyplot

    losses, shares = names_of(rows)
    figure, left = pyplot.subplots(figsize=(7.2, 3.6), dpi=120)
    right = left.twinx()
    for axes, names, line, factor in ((left, losses, "-", 1.0), (right, shares, "--", 100.0)):
        for number, name in enumerate(names):
            known = [r for r in rows if name in r]
            values = [factor * r[name] for r in known]
            colour = f"C{number if axes is left else number + len(losses)}"
            axes.plot([r["step"] for r in known], values, line, color=colour, label=name)
    left.set(xlabel="step", ylabel="loss", ylim=(0, None))
    right.set(ylabel="right, %", ylim=(0, 102))
    left.grid(alpha=0.3)
    figure.legend(loc="upper center", ncols=6, frameon=False)
    figure.savefig(out)
    pyplot.close(figure)


def main() -> None:
    """Read the command line and draw."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("run", type=Path, help="folder with a log.jsonl")
    parser.add_argument("out", type=Path, help="PNG to write")
    options = parser.parse_args()
    try:
        rows = read_log(options.run)
    except (FileNotFoundError, ValueError) as error:
        parser.error(str(error))
    draw(rows, options.out)


if __name__ == "__main__":
    main()
