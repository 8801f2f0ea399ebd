"""`python training/pretrain.py` as a program: its recipes and its error messages."""

from __future__ import annotations

import subprocess
import sys

import pytest

from model.config import PROJECT_ROOT
from training.run.recipe import PRETRAINING_RECIPES

pytestmark = pytest.mark.slow


def run(*options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "training/pretrain.py", *options],
        cwd=PROJECT_ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


def test_an_unknown_recipe_ends_with_the_list_of_recipes() -> None:
    done = run("--recipe", "sft")
    assert done.returncode == 2
    for name in PRETRAINING_RECIPES:
        assert name in done.stderr
