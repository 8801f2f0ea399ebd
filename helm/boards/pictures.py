"""Pictures of the dashboards from a Prometheus's data: `python -m helm.boards.pictures URL --out docs/dashboards`.

Not Grafana's own pictures: the same queries, titles, units and thresholds, drawn with matplotlib.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path
from typing import Any

import httpx
import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.dates import AutoDateLocator, ConciseDateFormatter
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, PercentFormatter

from helm.boards.__main__ import FOLDER

COLUMNS = 3
POINTS = 240  # of a line
MAX_LINES = 8  # in a legend
COLORS = {"green": "#3d9a50", "yellow": "#d9a514", "red": "#c4342c"}

Series = list[tuple[str, list[float], list[float]]]  # legend, times, values


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
        figure = drawn(json.loads(path.read_text()), given.url, given.minutes * 60)
        figure.savefig(given.out / f"{path.stem}.png", dpi=80, bbox_inches="tight")


def drawn(board: dict[str, Any], url: str, span_s: float) -> Figure:
    """One dashboard, its panels in rows of three."""
    panels = [panel for panel in board["panels"] if panel["type"] != "row"]
    rows = math.ceil(len(panels) / COLUMNS)
    mpl.rcParams.update(
        {"font.size": 8, "axes.titlesize": 9, "axes.spines.top": False, "axes.spines.right": False}
    )
    figure = Figure(figsize=(5 * COLUMNS, 2.4 * rows), layout="constrained")
    figure.suptitle(board["title"])
    axes = figure.subplots(rows, COLUMNS, squeeze=False).flat
    with httpx.Client(base_url=url, trust_env=False, timeout=30) as prometheus:
        for axis, panel in zip(axes, panels, strict=False):
            draw(axis, panel, asked(prometheus, panel, span_s))
    for axis in list(axes)[len(panels) :]:
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
            found.append((name, [float(each) for each in times], [float(each) for each in values]))
    return found


def draw(axis: Axes, panel: dict[str, Any], series: Series) -> None:
    """One panel: its lines, and its thresholds where they are in sight."""
    defaults = panel["fieldConfig"]["defaults"]
    axis.set_title(panel["title"], loc="left", weight="bold")
    for name, times, values in series:
        axis.plot([each / 86400 for each in times], values, label=name, lw=1.1)
    axis.set_ylim(bottom=0)
    top = axis.get_ylim()[1]
    for step in defaults["thresholds"]["steps"]:
        if step["value"] is not None and step["value"] <= top:
            axis.axhline(step["value"], color=COLORS[step["color"]], lw=0.8, ls="--")
    locator = AutoDateLocator(maxticks=6)
    axis.xaxis.set_major_locator(locator)
    axis.xaxis.set_major_formatter(ConciseDateFormatter(locator))
    unit = defaults["unit"]
    if unit == "percentunit":
        axis.yaxis.set_major_formatter(PercentFormatter(1))
    else:
        axis.yaxis.set_major_formatter(EngFormatter({"s": "s", "bytes": "B"}.get(unit, "")))
    if 0 < len(series) <= MAX_LINES and any(name for name, _, _ in series):
        axis.legend(fontsize=6.5, frameon=False, loc="upper left")


if __name__ == "__main__":
    main()
