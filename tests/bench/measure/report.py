"""What every benchmark shares: its command line, a table for people, a plot, a kept result, one JSON line last."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import torch

from tests.bench.measure.machine import choose_clock, describe, device_of

mpl.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

RESULTS = Path(__file__).parent.parent / "results"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def parser(about: str | None) -> argparse.ArgumentParser:
    """The options that all benchmarks know."""
    made = argparse.ArgumentParser(description=(about or "").split("\n")[0])
    made.add_argument("--quick", action="store_true", help="small sizes and few rounds; nothing is kept")
    made.add_argument("--device", default="auto", help="cpu, cuda or auto (cuda when there is one)")
    made.add_argument("--dtype", choices=DTYPES, help="default: float32 on a CPU, bfloat16 on a GPU")
    made.add_argument("--threads", type=int, default=0, help="CPU threads; 0: torch's own choice")
    made.add_argument("--clock", choices=("wall", "cpu"), default="wall", help="cpu: one thread's own time")
    made.add_argument("--rounds", type=int, default=0, help="rounds to take the median of; 0: the default")
    made.add_argument("--out", type=Path, help=f"folder of the result; default {RESULTS.name}/ beside this")
    return made


def setup(options: argparse.Namespace) -> tuple[torch.device, torch.dtype]:
    """Device and number type that were asked for."""
    choose_clock(options.clock)
    if options.clock == "cpu":
        torch.set_num_threads(1)
    elif options.threads:
        torch.set_num_threads(options.threads)
    device = device_of(options.device)
    default = torch.bfloat16 if device.type == "cuda" else torch.float32
    return device, DTYPES[options.dtype] if options.dtype else default


def numbers(text: str) -> list[int]:
    """`1,8,32` as a list, for the command line."""
    return [int(part) for part in text.split(",") if part]


def table(rows: Sequence[dict[str, Any]]) -> None:
    """Print rows with the same keys, aligned."""
    if not rows:
        return
    cells = [[str(row.get(key, "")) for key in rows[0]] for row in rows]
    widths = [max(len(cell) for cell in column) for column in zip(list(rows[0]), *cells, strict=True)]
    for line in [list(rows[0]), *cells]:
        print("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)))
    print(flush=True)


class Plot:
    """A row of small charts in one picture."""

    def __init__(self, title: str, num: int) -> None:
        self.figure, axes = plt.subplots(1, num, figsize=(4.6 * num, 3.6), squeeze=False)
        self.axes: list[Axes] = list(axes[0])
        self.figure.suptitle(title, fontsize=11)

    def line(self, chart: int, x: Sequence[float], y: Sequence[float], label: str = "") -> None:
        """One curve with its points."""
        self.axes[chart].plot(x, y, marker="o", markersize=4, linewidth=1.4, label=label or None)

    def label(self, chart: int, x: str, y: str, *, log_x: bool = False, log_y: bool = False) -> None:
        """Names of the axes; log scales where sizes double."""
        axes = self.axes[chart]
        axes.set_xlabel(x)
        axes.set_ylabel(y)
        if log_x:
            axes.set_xscale("log", base=2)
        if log_y:
            axes.set_yscale("log")
        axes.grid(alpha=0.3)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize=8)

    def save(self, path: Path) -> None:
        """Write the picture."""
        self.figure.tight_layout()
        self.figure.savefig(path, dpi=110)
        plt.close(self.figure)


def name_of(bench: str, shape: str) -> str:
    """Of the result: other shapes than tiny have one of their own."""
    return bench if shape == "tiny" else f"{bench}_{shape}"


def keep(
    name: str, result: dict[str, Any], plot: Plot, options: argparse.Namespace, device: torch.device
) -> None:
    """Keep result and plot (a GPU's beside a CPU's), then print the one JSON line, which is always the last."""
    kept = {"bench": name, **describe(device), "clock": options.clock, "quick": options.quick, **result}
    folder = options.out or (None if options.quick else RESULTS)
    if folder is not None:
        stem = f"bench_{name}" + ("" if device.type == "cpu" else f"_{device.type}")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{stem}.json").write_text(json.dumps(kept, indent=1) + "\n")
        plot.save(folder / f"{stem}.png")
    print(json.dumps(kept))
