"""Shared by all benchmarks: command line, table, plot, result file, and a last line of JSON."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import torch

from services.cli.table import text_table
from tests.bench.measure.machine import choose_clock, describe, device_of

mpl.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

RESULTS = Path(__file__).parent.parent / "results"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def make_parser(about: str | None) -> argparse.ArgumentParser:
    """A parser with the options of all benchmarks."""
    parser = argparse.ArgumentParser(description=(about or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="small sizes and few rounds; no result is saved")
    parser.add_argument("--device", default="auto", help="cpu, cuda or auto (cuda when there is one)")
    parser.add_argument("--dtype", choices=DTYPES, help="default: float32 on a CPU, bfloat16 on a GPU")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; 0: torch's own choice")
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall", help="cpu: one thread's own time")
    parser.add_argument(
        "--rounds", type=int, default=0, help="number of rounds for the median; 0: the default"
    )
    parser.add_argument("--out", type=Path, help=f"folder of the result (default: {RESULTS.name}/)")
    return parser


def setup(options: argparse.Namespace) -> tuple[torch.device, torch.dtype]:
    """The device and number format that the options name."""
    choose_clock(options.clock)
    if options.clock == "cpu":
        torch.set_num_threads(1)
    elif options.threads:
        torch.set_num_threads(options.threads)
    device = device_of(options.device)
    default = torch.bfloat16 if device.type == "cuda" else torch.float32
    return device, DTYPES[options.dtype] if options.dtype else default


def int_list(text: str) -> list[int]:
    """`1,8,32` on the command line as a list."""
    return [int(part) for part in text.split(",") if part]


def print_table(rows: Sequence[dict[str, Any]]) -> None:
    """Print rows with the same keys, aligned."""
    if not rows:
        return
    cells = [[str(row.get(key, "")) for key in rows[0]] for row in rows]
    print(text_table([list(rows[0]), *cells], align=str.rjust) + "\n", flush=True)


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


def result_name(bench: str, shape: str) -> str:
    """The name of the result; shapes other than tiny have their own."""
    return bench if shape == "tiny" else f"{bench}_{shape}"


def save_result(
    name: str, result: dict[str, Any], plot: Plot, options: argparse.Namespace, device: torch.device
) -> None:
    """Save result and plot (with the device in the name on a GPU), then print the result as the last line, in JSON."""
    saved = {"bench": name, **describe(device), "clock": options.clock, "quick": options.quick, **result}
    folder = options.out or (None if options.quick else RESULTS)
    if folder is not None:
        stem = f"bench_{name}" + ("" if device.type == "cpu" else f"_{device.type}")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{stem}.json").write_text(json.dumps(saved, indent=1) + "\n")
        plot.save(folder / f"{stem}.png")
    print(json.dumps(saved))
