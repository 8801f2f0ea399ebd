"""What a run that goes on in its folder may change, and what it may not."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import pytest

from training.data.row_files import write_rows
from training.data.training_row import TrainingRow, Turn
from training.monitoring.provenance import write_provenance
from training.run.launch import parse_options
from training.run.plan import Plan
from training.run.plan_builder import build_plan, check_same_recipe
from training.run.recipe import SFT_RECIPES, Recipe


def text_rows(path: Path, *answers: str) -> Path:
    turns = [Turn(instruction="What?", answer=answer) for answer in answers]
    rows = [TrainingRow(video="", turns=(turn,), kind="text", source="t") for turn in turns]
    write_rows(str(path), rows)
    return path


def planned(monkeypatch: pytest.MonkeyPatch, out: Path, rows: Path, *settings: str) -> Plan:
    """The plan of `python training/sft.py`, and its `recipe.json`, as when a run starts."""
    words = ["sft.py", "--recipe", "smoke", "--rows", str(rows), "--out", str(out)]
    monkeypatch.setattr(sys, "argv", [*words, "--set", "epochs=2", *settings])
    options: tuple[Recipe, argparse.Namespace] = parse_options(SFT_RECIPES, "")
    check_same_recipe(*options)
    plan = build_plan(*options)
    write_provenance(plan, words, [], 1)
    return plan


def test_a_run_goes_on_with_other_settings_of_the_machine(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    rows = text_rows(tmp_path / "rows.jsonl", "A dog.", "A cat.")
    first = planned(monkeypatch, tmp_path / "out", rows)
    again = planned(
        monkeypatch, tmp_path / "out", rows, "micro_batch=8", "checkpoint_activations=true", "report_every=5"
    )
    assert first.fingerprint == again.fingerprint != ""
    assert again.recipe.micro_batch == 8
    with pytest.raises(ValueError, match=r"has a run with another recipe \(seed\)"):
        planned(monkeypatch, tmp_path / "out", rows, "seed=2")


def test_a_run_goes_on_only_with_its_rows(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    rows = text_rows(tmp_path / "rows.jsonl", "A dog.", "A cat.")
    planned(monkeypatch, tmp_path / "out", rows)
    other = text_rows(tmp_path / "other.jsonl", "A dog.", "A car.")
    with pytest.raises(ValueError, match="has a run on other data"):
        planned(monkeypatch, tmp_path / "out", other)
    swapped = text_rows(tmp_path / "swapped.jsonl", "A cat.", "A dog.")
    with pytest.raises(ValueError, match="has a run on other data"):
        planned(monkeypatch, tmp_path / "out", swapped)
    planned(monkeypatch, tmp_path / "out", rows)
