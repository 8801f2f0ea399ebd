"""The initial model: a given folder, a copy with other switches, or a new streamchat-tiny."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from model.checkpoint.folder import load_model, save_folder
from model.checkpoint.tokenizer import load_tokenizer
from tests.random_folder import make_random_folder
from training.run.initial_model import new_tiny_folder, prepare_initial_model, with_switches
from training.run.recipe import SFT_RECIPES


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with V-FFNs that differ from the FFNs."""
    folder = make_random_folder(tmp_path_factory.mktemp("given"))
    model = load_model(folder)
    for name, parameter in model.named_parameters():
        if ".visual_ffn." in name:
            torch.nn.init.normal_(parameter)
    save_folder(model, folder)
    return folder


def test_a_folder_with_the_right_switches_is_used_directly(given: Path, tmp_path: Path) -> None:
    assert prepare_initial_model(SFT_RECIPES["sft"], given, tmp_path / "work") == given
    assert (
        prepare_initial_model(replace(SFT_RECIPES["sft"], gate="linear"), given, tmp_path / "work") == given
    )
    assert not (tmp_path / "work").exists()


@pytest.mark.parametrize("ablation", ["no_visual_ffn", "tanh_gate", "no_parameter_reuse"])
def test_a_switch_keeps_all_other_weights(given: Path, tmp_path: Path, ablation: str) -> None:
    made = prepare_initial_model(SFT_RECIPES[f"sft_{ablation}"], given, tmp_path / "work")
    model, before = load_model(made), dict(load_model(given).named_parameters())
    after = dict(model.named_parameters())
    assert all(torch.equal(after[name], before[name]) for name in set(before) & set(after))
    new = {name for name in after if name not in before}
    assert bool(new) is (ablation == "no_parameter_reuse")
    assert all(".cross_attn." in name for name in new)
    assert all(torch.equal(after[name], before[name.replace("cross_attn", "self_attn")]) for name in new)
    assert any(".visual_ffn." in name for name in after) is (ablation != "no_visual_ffn")
    assert model.config.gate == ("tanh" if ablation == "tanh_gate" else "linear")
    assert len(load_tokenizer(made)) == model.config.vocab_size


def test_new_visual_ffns_start_as_copies_of_the_ffns(given: Path) -> None:
    model = load_model(given)
    without = with_switches(model, replace(model.config, visual_ffn=False))
    again = dict(with_switches(without, model.config).named_parameters())
    assert torch.equal(
        again["language.layers.0.visual_ffn.up_proj.weight"], again["language.layers.0.mlp.up_proj.weight"]
    )


def test_a_new_tiny_is_the_same_for_the_same_seed(tmp_path: Path) -> None:
    one, other, third = (
        dict(load_model(new_tiny_folder(tmp_path / str(number), None, seed)).named_parameters())
        for number, seed in enumerate((1, 1, 2))
    )
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert any(not torch.equal(one[name], third[name]) for name in one)
