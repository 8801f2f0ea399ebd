"""Tables for people, and titles for all variants."""

from __future__ import annotations

import json
from pathlib import Path

from model.config import PROJECT_ROOT
from training.evaluation.ablations import VARIANTS
from training.evaluation.reports import TITLES, markdown_table, rate_table, write_ablation_report
from training.evaluation.win_rates import JudgedQuestion, win_rates


def test_a_markdown_table() -> None:
    assert markdown_table(("a", "b"), [("1", "2")]) == "| a | b |\n| --- | --- |\n| 1 | 2 |\n"


def test_the_table_of_rates() -> None:
    outcomes = ("win", "win", "win", "loss")
    rates = win_rates([JudgedQuestion(group=str(i), outcome=o) for i, o in enumerate(outcomes)])
    lines = rate_table(
        [{"first": "a", "second": "b", **rates}, {"first": "a", "second": "c", "questions": 0}]
    ).splitlines()
    assert lines[2].startswith("| a | b | 75 % (")
    assert lines[2].endswith("| 4 |")
    assert lines[3] == "| a | c | – | – | – | 0 |"


def test_every_variant_has_a_title() -> None:
    assert set(TITLES) == set(VARIANTS)


def test_the_kept_report_is_what_its_numbers_give(tmp_path: Path) -> None:
    kept = PROJECT_ROOT / "docs" / "ablations.json"
    about = json.loads(kept.read_text())
    variants = about.pop("variants")
    write_ablation_report(about, variants, tmp_path)
    assert (tmp_path / "ablations.json").read_text() == kept.read_text()
    assert (tmp_path / "ablations.md").read_text() == kept.with_suffix(".md").read_text()
    assert (tmp_path / "ablations.png").read_bytes().startswith(b"\x89PNG")
