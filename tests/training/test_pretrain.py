"""`python training/pretrain.py`, as a program: what it offers, and that mistakes end it with a word about them."""

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


def test_it_offers_its_recipes_and_names_a_mistake() -> None:
    done = run("--recipe", "sft")
    assert done.returncode == 2
    for name in PRETRAINING_RECIPES:
        assert name in done.stderr
