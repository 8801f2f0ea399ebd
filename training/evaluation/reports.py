"""Reports of evaluations for people: Markdown tables, and the page and picture of the ablations."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from training.evaluation.win_rates import OUTCOMES

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


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = ["| " + " | ".join(row) + " |" for row in (head, *rows)]
    lines.insert(1, "|" + " --- |" * len(head))
    return "\n".join(lines) + "\n"


def format_rate(rate: Mapping[str, float]) -> str:
    """A rate with its interval: `41 % (35–47)`."""
    return f"{100 * rate['share']:.0f} % ({100 * rate['low']:.0f}–{100 * rate['high']:.0f})"


def rate_table(summaries: Iterable[Mapping[str, Any]]) -> str:
    """Win, tie and loss rates of each `first` against its `second`, with 95 % intervals, as a Markdown table."""
    head = ("candidate", "against", "win", "tie", "loss", "questions")
    rows: list[list[str]] = []
    for summary in summaries:
        rates = [format_rate(summary[o]) for o in OUTCOMES] if summary["questions"] else ["–"] * 3
        rows.append([summary["first"], summary["second"], *rates, str(summary["questions"])])
    return markdown_table(head, rows)


def write_ablation_report(about: Mapping[str, Any], variants: Mapping[str, Any], docs: Path) -> None:
    """Write `ablations.json`, `ablations.md` and `ablations.png`."""
    docs.mkdir(parents=True, exist_ok=True)
    (docs / "ablations.json").write_text(json.dumps({**about, "variants": variants}, indent=1) + "\n")
    (docs / "ablations.md").write_text(ablation_page(about, variants))
    plot_ablations(variants, docs / "ablations.png")


def ablation_page(about: Mapping[str, Any], variants: Mapping[str, Any]) -> str:
    """The page: how it was measured, the table and the picture."""
    settings = ", ".join(about["settings"]) or "none"
    return f"""# The paper's Table 3 in miniature

Five variants of streamchat-tiny, each with the seeds {", ".join(map(str, about["seeds"]))}, all from new weights around
the same vision encoder, {about["steps"]} steps each (other settings: {settings}), asked all questions about
{about["clips"]} held-out clips of the live world. Accuracies are shares of right state-bearing words, mean ± standard
deviation over seeds, spoken freely at five words a second; *after* are words about what became so only after the
question. Win, tie and loss are against the full model of the same seed, question by question, by the world's truth,
with 95 % bootstrap intervals over clips. The last column is the paper's (7B model, 100 questions, Gemini-1.5-Pro as
judge).

{ablation_table(variants)}
![Accuracy, and win, tie and loss against the full model](ablations.png)

Made with `python training/evaluation/ablations.py`; the numbers are in `ablations.json`.
"""


def ablation_table(variants: Mapping[str, Any]) -> str:
    """A Markdown table with a row for each variant."""
    head = ("variant", "after, live", "before, live", "after, frozen", "training forward")
    head += ("win", "tie", "loss", "paper's win/tie/loss")
    rows: list[list[str]] = []
    for variant, result in variants.items():
        names = ("live_after", "live_before", "frozen_after", "training_forward")
        cells = [f"{100 * result[n]['mean']:.1f} ± {100 * result[n]['spread']:.1f} %" for n in names]
        rates = result.get("against_full")
        cells += [format_rate(rates[o]) for o in OUTCOMES] if rates else ["–"] * 3
        cells.append("/".join(map(str, PAPER[variant])) if variant in PAPER else "–")
        rows.append([TITLES[variant], *cells])
    return markdown_table(head, rows)


def plot_ablations(variants: Mapping[str, Any], path: Path) -> None:
    """Plot accuracies with a point for every seed (left), and win, tie and loss rates (right)."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10.5, 3.8), dpi=120, sharey=True)
    positions = list(range(len(variants)))[::-1]
    for name, shift, colour, label in (
        ("live_after", 0.18, "#1f6feb", "after the question"),
        ("live_before", -0.18, "#9ecbff", "before it"),
    ):
        means = [100 * result[name]["mean"] for result in variants.values()]
        left.barh([p + shift for p in positions], means, height=0.34, color=colour, label=label)
        for position, result in zip(positions, variants.values(), strict=True):
            values = [100 * value for value in result[name]["values"]]
            left.plot(values, [position + shift] * len(values), "o", color="#24292f", markersize=3)
    left.set(xlabel="state-bearing words right, %", xlim=(0, 100), yticks=positions)
    left.set_yticklabels([TITLES[variant] for variant in variants])
    left.legend(loc="lower right", fontsize=8)
    for position, result in zip(positions, variants.values(), strict=True):
        begin = 0.0
        for outcome in OUTCOMES if "against_full" in result else ():
            share = 100 * result["against_full"][outcome]["share"]
            right.barh(position, share, left=begin, height=0.6, color=COLOURS[outcome])
            right.text(begin + share / 2, position, f"{share:.0f}", ha="center", va="center", fontsize=8)
            begin += share
    right.set(xlabel="win, tie and loss against the full model, %", xlim=(0, 100))
    for axes in (left, right):
        axes.grid(axis="x", alpha=0.3)
        axes.set_axisbelow(True)
    figure.tight_layout()
    figure.savefig(path)
    pyplot.close(figure)
