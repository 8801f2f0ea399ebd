"""Pictures of the dashboards from a Prometheus's data: `python -m helm.boards.pictures URL --out docs/dashboards`.

Not Grafana's own pictures: the same queries, titles, units and thresholds, drawn with matplotlib.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import time
from pathlib import Path
from typing import Any

import httpx
import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, Formatter, FuncFormatter, MaxNLocator, PercentFormatter
from PIL import Image

from helm.boards.__main__ import FOLDER

COLUMNS = 3
POINTS = 240  # of a line
MAX_LINES = 8  # in a legend
HEADROOM = 1.35  # over the lines, for the legend
NUM_COLORS = 64  # of a picture: small files
COLORS = {"green": "#3d9a50", "yellow": "#d9a514", "red": "#c4342c"}

Series = list[tuple[str, list[float], list[float]]]  # legend, minutes from now, values


def main() -> None:
    """Draw all dashboards."""
    options = argparse.ArgumentParser(description="Pictures of the dashboards from a Prometheus's data")
    options.add_argument("url", help="of a Prometheus, http://127.0.0.1:9090")
    options.add_argument("--out", type=Path, default=Path("docs/dashboards"), help="folder for the pictures")
    options.add_argument("--minutes", type=float, default=5, help="how far back (5)")
    options.add_argument("--only", default="*", help="one dashboard's name")
    given = options.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    for path in sorted(FOLDER.glob(f"{given.only}.json")):
        save(
            drawn(json.loads(path.read_text()), given.url, given.minutes * 60), given.out / f"{path.stem}.png"
        )


def save(figure: Figure, path: Path) -> None:
    """As a PNG of few colours."""
    whole = io.BytesIO()
    figure.savefig(whole, dpi=80, bbox_inches="tight")
    few = Image.open(whole).convert("RGB").quantize(NUM_COLORS, dither=Image.Dither.NONE)
    few.save(path, optimize=True)


def drawn(board: dict[str, Any], url: str, span_s: float) -> Figure:
    """One dashboard, its panels in rows of three."""
    panels = [panel for panel in board["panels"] if panel["type"] != "row"]
    rows = math.ceil(len(panels) / COLUMNS)
    mpl.rcParams.update(
        {"font.size": 8, "axes.titlesize": 9, "axes.spines.top": False, "axes.spines.right": False}
    )
    figure = Figure(figsize=(5 * COLUMNS, 2.4 * rows), layout="constrained")
    figure.suptitle(board["title"])
    axes = list(figure.subplots(rows, COLUMNS, squeeze=False).flat)
    with httpx.Client(base_url=url, trust_env=False, timeout=30) as prometheus:
        for axis, panel in zip(axes, panels, strict=False):
            draw(axis, panel, asked(prometheus, panel, span_s), span_s / 60)
    for axis in axes[len(panels) :]:
        axis.set_axis_off()
    return figure


def asked(prometheus: httpx.Client, panel: dict[str, Any], span_s: float) -> Series:
    """What the panel's queries return over the last `span_s` seconds."""
    end_s = time.time()
    found: Series = []
    for target in panel["targets"]:
        query = {
            "query": target["expr"].replace("$namespace", ".*"),
            "start": end_s - span_s,
            "end": end_s,
            "step": span_s / POINTS,
        }
        answer = prometheus.get("/api/v1/query_range", params=query).raise_for_status().json()
        for series in answer["data"]["result"]:
            name = target["legendFormat"]
            for label, value in series["metric"].items():
                name = name.replace("{{" + label + "}}", value)
            times, values = zip(*series["values"], strict=True)
            minutes = [(float(each) - end_s) / 60 for each in times]
            found.append((name, minutes, [float(each) for each in values]))
    return found


def draw(axis: Axes, panel: dict[str, Any], series: Series, span: float) -> None:
    """One panel over `span` minutes: its lines, and its thresholds where they are in sight."""
    defaults = panel["fieldConfig"]["defaults"]
    axis.set_title(panel["title"], loc="left", weight="bold")
    for name, minutes, values in series:
        axis.plot(minutes, values, label=name, lw=1.1)
    finite = [value for _, _, values in series for value in values if math.isfinite(value)]
    top = (max(finite, default=0.0) or 1.0) * HEADROOM
    axis.set(xlim=(-span, 0), ylim=(0, top))
    for step in defaults["thresholds"]["steps"]:
        if step["value"] is not None and step["value"] <= top:
            axis.axhline(step["value"], color=COLORS[step["color"]], lw=0.8, ls="--")
    axis.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axis.xaxis.set_major_formatter(FuncFormatter(lambda minutes, _: f"{minutes:g} min" if minutes else "now"))
    axis.yaxis.set_major_locator(MaxNLocator(5))
    axis.yaxis.set_major_formatter(numbers(defaults["unit"], top))
    if 0 < len(series) <= MAX_LINES and any(name for name, _, _ in series):
        axis.legend(
            fontsize=6.5, frameon=False, loc="upper left", ncols=4, columnspacing=1.0, handlelength=1.2
        )


def numbers(unit: str, top: float) -> Formatter:
    """How the numbers of an axis up to `top` are written."""
    if unit == "percentunit":
        return PercentFormatter(1)
    if unit in ("s", "bytes") or top >= 10_000:
        return EngFormatter({"s": "s", "bytes": "B"}.get(unit, ""))
    return FuncFormatter(lambda value, _: f"{value:g}")


if __name__ == "__main__":
    main()
