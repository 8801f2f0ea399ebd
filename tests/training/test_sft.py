"""`python training/sft.py` as a program: its recipes and its error messages."""

from __future__ import annotations

import subprocess
import sys

import pytest

from model.config import PROJECT_ROOT
from training.run.recipe import SFT_RECIPES

pytestmark = pytest.mark.slow


def run(*options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "training/sft.py", *options],
        cwd=PROJECT_ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


def test_an_unknown_recipe_ends_with_the_list_of_recipes() -> None:
    done = run("--recipe", "pretrain_stage1")
    assert done.returncode == 2
    for name in SFT_RECIPES:
        assert name in done.stderr


@pytest.mark.parametrize(
    "ablation", ["no_visual_ffn", "tanh_gate", "no_parameter_reuse", "no_dense_instructions"]
)
def test_table_3_has_its_recipes(ablation: str) -> None:
    assert {f"sft_{ablation}", f"live_world_{ablation}"} <= SFT_RECIPES.keys()
