"""Tables for people, and titles for all variants."""

from __future__ import annotations

from training.evaluation.ablations import VARIANTS
from training.evaluation.reports import TITLES, markdown_table, rate_table
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
