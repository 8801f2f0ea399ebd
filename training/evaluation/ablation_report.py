"""What the ablations found, for people: a table, a picture, and the numbers as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from training.evaluation.win_rates import OUTCOMES, percent

TITLES = {
    "full": "full",
    "no_visual_ffn": "no V-FFN",
    "tanh_gate": "tanh gate",
    "no_parameter_reuse": "no parameter reuse",
    "no_dense_instructions": "no dense instructions",
}
PAPER = {  # Table 3, StreamEval: win/tie/loss against the full model, in percent
    "no_visual_ffn": (18, 46, 36),
    "tanh_gate": (25, 45, 30),
    "no_parameter_reuse": (20, 33, 47),
    "no_dense_instructions": (25, 34, 41),
}
COLOURS = {"win": "#2da44e", "tie": "#c9d1d9", "loss": "#d1242f"}


def write_report(about: Mapping[str, Any], found: Mapping[str, Any], docs: Path) -> None:
    """Write `ablations.json`, `ablations.md` and `ablations.png`."""
    docs.mkdir(parents=True, exist_ok=True)
    (docs / "ablations.json").write_text(json.dumps({**about, "variants": found}, indent=1) + "\n")
    (docs / "ablations.md").write_text(page(about, found))
    draw(found, docs / "ablations.png")


def page(about: Mapping[str, Any], found: Mapping[str, Any]) -> str:
    """The table with what stands behind it."""
    settings = ", ".join(about["settings"]) or "none"
    return f"""# The paper's Table 3 in miniature

Five variants of streamchat-tiny, each with the seeds {", ".join(map(str, about["seeds"]))}, all from new weights around
the same vision encoder, {about["steps"]} steps each (other settings: {settings}), asked all questions about
{about["clips"]} held-out clips of the live world. Accuracies are shares of right state-bearing words, mean ± standard
deviation over seeds, spoken freely at five words a second; *after* are words about what became so only after the
question. Win, tie and loss are against the full model of the same seed, question by question, by the world's truth,
with 95 % bootstrap intervals over clips. The last column is the paper's (7B model, 100 questions, Gemini-1.5-Pro as
judge).

{table(found)}
![Accuracy, and win, tie and loss against the full model](ablations.png)

Made with `python training/evaluation/ablations.py`; the numbers are in `ablations.json`.
"""


def table(found: Mapping[str, Any]) -> str:
    """As Markdown, a row for each variant."""
    head = ("variant", "after, live", "before, live", "after, frozen", "training forward")
    head += ("win", "tie", "loss", "paper's win/tie/loss")
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    for variant, row in found.items():
        names = ("live_after", "live_before", "frozen_after", "training_forward")
        cells = [f"{100 * row[n]['mean']:.1f} ± {100 * row[n]['spread']:.1f} %" for n in names]
        rates = row.get("against_full")
        cells += [percent(rates[o]) for o in OUTCOMES] if rates else ["–"] * 3
        cells.append("/".join(map(str, PAPER[variant])) if variant in PAPER else "–")
        lines.append("| " + " | ".join([TITLES[variant], *cells]) + " |")
    return "\n".join(lines) + "\n"


def draw(found: Mapping[str, Any], path: Path) -> None:
    """Accuracies with every seed as a point to the left; win, tie and loss to the right."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10.5, 3.8), dpi=120, sharey=True)
    places = list(range(len(found)))[::-1]
    for name, shift, colour, label in (
        ("live_after", 0.18, "#1f6feb", "after the question"),
        ("live_before", -0.18, "#9ecbff", "before it"),
    ):
        means = [100 * row[name]["mean"] for row in found.values()]
        left.barh([p + shift for p in places], means, height=0.34, color=colour, label=label)
        for place, row in zip(places, found.values(), strict=True):
            values = [100 * value for value in row[name]["values"]]
            left.plot(values, [place + shift] * len(values), "o", color="#24292f", markersize=3)
    left.set(xlabel="state-bearing words right, %", xlim=(0, 100), yticks=places)
    left.set_yticklabels([TITLES[variant] for variant in found])
    left.legend(loc="lower right", fontsize=8)
    for place, row in zip(places, found.values(), strict=True):
        begin = 0.0
        for outcome in OUTCOMES if "against_full" in row else ():
            share = 100 * row["against_full"][outcome]["share"]
            right.barh(place, share, left=begin, height=0.6, color=COLOURS[outcome])
            right.text(begin + share / 2, place, f"{share:.0f}", ha="center", va="center", fontsize=8)
            begin += share
    right.set(xlabel="win, tie and loss against the full model, %", xlim=(0, 100))
    for axes in (left, right):
        axes.grid(axis="x", alpha=0.3)
        axes.set_axisbelow(True)
    figure.tight_layout()
    figure.savefig(path)
    pyplot.close(figure)
