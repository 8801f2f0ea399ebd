"""Weights of fewer bits: what they are made of, and that the engine still says what the whole ones say, nearly."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from model.checkpoint.weights import WeightFormat, compute_dtype, parse_weight_format, quantise_to
from model.config import PROJECT_ROOT
from model.engine.engine import Engine
from model.engine.options import DialogOptions
from model.network.streamchat import StreamChat
from tests.model.scenes import make_model, make_scene, play


def test_names_and_what_is_computed_with():
    assert parse_weight_format("int8") == "int8"
    with pytest.raises(
        ValueError, match="weights: got 'int3', wanted one of auto, float32, bfloat16, int8, float8"
    ):
        parse_weight_format("int3")
    assert compute_dtype("auto", "cpu") == compute_dtype("int8", "cpu") == torch.float32
    assert compute_dtype("auto", "cuda:1") == compute_dtype("float8", "cuda") == torch.bfloat16
    assert compute_dtype("float32", "cuda") == torch.float32
    assert compute_dtype("bfloat16", "cpu") == torch.bfloat16
    assert quantise_to("bfloat16") is None


@pytest.fixture
def torchao(monkeypatch: pytest.MonkeyPatch) -> None:
    """The `quantised` extra, which lies apart from what else is installed."""
    monkeypatch.syspath_prepend(str(PROJECT_ROOT / ".venv" / "quantised"))


def test_without_torchao_it_says_what_is_missing(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)  # pyright: ignore[reportUnknownLambdaType]
    with pytest.raises(ImportError, match="int8 weights need torchao: pip install"):
        quantise_to("int8")


def served(model: StreamChat, weights: WeightFormat) -> Tensor:
    """Logits [positions, V] of a scene."""
    model = model.to(compute_dtype(weights, "cpu"))
    engine = Engine(model, quantise=quantise_to(weights), max_dialogs=1)
    return torch.stack([logits.float() for _, logits in play(engine, make_scene(model), DialogOptions())])


@pytest.mark.parametrize("shape", ["gqa_tied", "own_attention", "llama"])
@pytest.mark.usefixtures("torchao")
@pytest.mark.parametrize("weights", ["int8", "float8", "bfloat16"])
def test_fewer_bits_change_little(shape: str, weights: WeightFormat):
    wanted, got = served(make_model(shape), "float32"), served(make_model(shape), weights)
    error = (got - wanted).square().mean().sqrt() / wanted.std()
    assert 0 < error < 0.1


@pytest.mark.usefixtures("torchao")
def test_the_whole_weights_are_let_go():
    model = make_model("gqa_tied")
    before = sum(p.untyped_storage().nbytes() for p in model.language.layers[1].parameters())
    Engine(model, quantise=quantise_to("int8"), max_dialogs=1)
    left = {
        p.untyped_storage().data_ptr(): p.untyped_storage().nbytes()
        for p in model.language.layers[1].parameters()
    }
    assert sum(left.values()) < before / 2


@pytest.mark.parametrize("shape", ["gqa_tied", "own_attention"])
def test_no_matrix_of_a_layer_is_kept_beside_its_replacement(shape: str):
    """Also where a layer looks at no frames: its keys and values were kept, and with them the whole joined matrix."""
    model = make_model(shape)
    Engine(model, quantise=torch.clone, max_dialogs=1)
    for index in range(model.config.num_hidden_layers):
        layer = model.layer(index)
        parts = [
            *layer.self_attn.parameters(),
            *layer.mlp.parameters(),
            *layer.cross_projections.parameters(),
        ]
        assert [part.shape for part in parts if part.dim() == 2] == []
