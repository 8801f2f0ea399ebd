"""`recipe.json`: how a model was trained."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from training.monitoring.provenance import git_revision, write_provenance
from training.run.plan import Plan
from training.run.recipe import smoke


def git(folder: Path, *words: str) -> None:
    identity = ("-c", "user.name=t", "-c", "user.email=t@example.org")
    subprocess.run(["git", *identity, *words], cwd=folder, check=True, capture_output=True)


def test_the_revision_is_the_commit_and_a_plus_for_changed_files(tmp_path: Path) -> None:
    assert git_revision(tmp_path) == "unknown"
    git(tmp_path, "init")
    (tmp_path / "a").write_text("1")
    git(tmp_path, "add", "a")
    git(tmp_path, "commit", "-m", "a")
    clean = git_revision(tmp_path)
    assert len(clean) == 40
    (tmp_path / "a").write_text("2")
    assert git_revision(tmp_path) == clean + "+"


def test_command_and_recipe_are_written_and_trainable_parts_are_printed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = Plan(recipe=smoke(), initial_model=tmp_path / "start", out=tmp_path / "out")
    write_provenance(plan, ["training/sft.py", "--recipe", "smoke"], ["adapter 3 parameters learn"], 2)
    values = json.loads((plan.run_folder / "recipe.json").read_text())
    assert values["command"] == "python training/sft.py --recipe smoke"
    assert values["recipe"]["global_batch"] == smoke().global_batch
    assert values["workers"] == 2
    assert "adapter 3 parameters learn" in capsys.readouterr().err
