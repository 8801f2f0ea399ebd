"""Recipes: the paper's numbers, overrides of every type, and error messages."""

from __future__ import annotations

import pytest

from training.run.recipe import ABLATIONS, PRETRAINING_RECIPES, SFT_RECIPES, Recipe, sft, with_overrides


def test_the_paper_s_numbers_are_the_defaults() -> None:
    one, two, tuning = (
        PRETRAINING_RECIPES["pretrain_stage1"],
        PRETRAINING_RECIPES["pretrain_stage2"],
        SFT_RECIPES["sft"],
    )
    assert (one.peak_lr, one.global_batch, one.steps, one.max_frames) == (5e-4, 512, 5000, 40)
    assert (two.peak_lr, two.global_batch, two.steps, two.max_frames) == (2e-5, 512, 5000, 40)
    assert (tuning.peak_lr, tuning.global_batch, tuning.steps, tuning.epochs) == (2e-5, 768, 0, 1.0)
    assert (tuning.max_frames, tuning.frames_per_second) == (32, 1.0)
    assert one.trainable == ("adapter",)
    assert set(two.trainable) == {"adapter", "vision", "visual_ffn", "gates"}
    assert tuning.trainable == ("all",)


def changed(full: Recipe, other: Recipe) -> set[str]:
    return {key for key in full.__slots__ if getattr(full, key) != getattr(other, key)}


@pytest.mark.parametrize("ablation", ABLATIONS)
def test_an_ablation_switches_one_thing(ablation: str) -> None:
    """Pretraining is shortened to 2000 steps, instruction tuning is an epoch."""
    assert changed(SFT_RECIPES["sft"], SFT_RECIPES[f"sft_{ablation}"]) == {"name", *ABLATIONS[ablation]}
    pretrained = PRETRAINING_RECIPES[f"pretrain_stage2_{ablation}"]
    assert pretrained.steps == 2000
    switches = set(ABLATIONS[ablation]) - {"frozen_view"}  # dense captions are no instructions
    assert changed(PRETRAINING_RECIPES["pretrain_stage2"], pretrained) == {"name", "steps", *switches}


def test_any_field_can_be_set() -> None:
    settings = (
        "steps=7",
        "peak_lr=1e-3",
        "flex=true",
        "trainable=adapter,gates",
        "gate=tanh",
        "visual_ffn=false",
    )
    recipe = with_overrides(sft(), settings)
    assert (recipe.steps, recipe.peak_lr, recipe.flex) == (7, 1e-3, True)
    assert (recipe.trainable, recipe.gate, recipe.visual_ffn) == (("adapter", "gates"), "tanh", False)
    assert with_overrides(recipe, ["visual_ffn=none", "kinds=dense"]).visual_ffn is None


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("stepz=7", "wanted key=value with one of: name, trainable"),
        ("steps", "wanted key=value"),
        ("steps=many", "steps: got 'many', wanted a number"),
        ("flex=1", "flex: got '1', wanted true or false"),
        ("micro_batch=5", "global_batch 768 is not a multiple of micro_batch 5"),
        ("micro_batch=0", "micro_batch: got 0, wanted more than 0"),
        ("kinds=dense,films", "kinds: got ['films']"),
        ("gate=sigmoid", "gate: got 'sigmoid', wanted linear or tanh"),
        ("max_bad_share=5", "max_bad_share: got 5.0, wanted 0 to 1"),
    ],
)
def test_mistakes_raise_a_message(setting: str, message: str) -> None:
    with pytest.raises(ValueError, match=r"[\s\S]*") as error:
        with_overrides(sft(), [setting])
    assert message in str(error.value)
