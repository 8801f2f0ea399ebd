"""The parameters that learn in each stage."""

from __future__ import annotations

import pytest

from model.network.streamchat import StreamChat
from training.optimise.trainable import COMPONENTS, component_of, set_trainable
from training.run.recipe import PRETRAINING_RECIPES, SFT_RECIPES


def learning(model: StreamChat) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def test_stage_1_teaches_the_adapter_alone(random_model: StreamChat) -> None:
    lines = set_trainable(random_model, PRETRAINING_RECIPES["pretrain_stage1"].trainable)
    assert learning(random_model) == {f"adapter.{i}.{kind}" for i in (0, 2) for kind in ("weight", "bias")}
    assert [line.split()[-1] for line in lines] == ["learn", "stay", "stay", "stay", "stay"]


def test_stage_2_adds_the_encoder_the_visual_ffns_and_the_gates(random_model: StreamChat) -> None:
    set_trainable(random_model, PRETRAINING_RECIPES["pretrain_stage2"].trainable)
    names = learning(random_model)
    assert "vision.encoder.embeddings.patch_embedding.weight" in names
    assert "language.layers.0.visual_ffn.up_proj.weight" in names
    assert "language.layers.0.visual_norm.weight" in names
    assert "language.layers.0.gate_cross" in names
    assert not any(".self_attn." in n or ".mlp." in n or "embed_tokens" in n for n in names if n[0] == "l")


def test_sft_teaches_everything(random_model: StreamChat) -> None:
    set_trainable(random_model, SFT_RECIPES["sft"].trainable)
    assert learning(random_model) == {name for name, _ in random_model.named_parameters()}
    assert {component_of(name) for name in learning(random_model)} == set(COMPONENTS)


def test_an_unknown_part_is_refused(random_model: StreamChat) -> None:
    with pytest.raises(ValueError, match="trainable: got adaptor, wanted all or some of adapter"):
        set_trainable(random_model, ["adaptor"])
