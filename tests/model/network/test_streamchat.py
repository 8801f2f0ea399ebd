"""The training forward: the checks that any implementation must pass, on random weights of several shapes."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import silu
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

from model.checkpoint.assemble import language_name
from model.config import StreamChatConfig
from model.engine.engine import Engine
from model.engine.options import DialogOptions
from model.network.attention import FrameAttention, TrainingAttention, self_attention
from model.network.layer import Layer
from model.network.rope import rotate
from model.network.streamchat import StreamChat
from tests.model.scenes import SHAPES, make_config, make_model, make_scene

CLOSE: dict[str, Any] = {"atol": 2e-5, "rtol": 1e-4}


def hugging_face(config: StreamChatConfig) -> Qwen2ForCausalLM | LlamaForCausalLM:
    """A random Hugging Face model of the language model's shape, biases and norms included."""
    shape: dict[str, Any] = {
        name: getattr(config, name)
        for name in (
            *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
            *(
                "num_key_value_heads",
                "head_dim",
                "rms_norm_eps",
                "tie_word_embeddings",
                "max_position_embeddings",
            ),
        )
    }
    shape |= {"rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta}}
    shape |= {"bos_token_id": None, "eos_token_id": None}
    torch.manual_seed(1)
    qwen = config.attention_bias
    theirs = Qwen2ForCausalLM(Qwen2Config(**shape)) if qwen else LlamaForCausalLM(LlamaConfig(**shape))
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, mean=float(parameter.dim() == 1), std=0.1)
    return theirs.eval()


@pytest.mark.parametrize("every", [1, 2, 4])
@pytest.mark.parametrize("shape", ["gqa_tied", "mha_untied", "llama", "tanh_gate", "own_attention"])
def test_with_gates_at_zero_it_is_hugging_faces_model(shape: str, every: int):
    model = make_model(shape, cross_attention_every=every)
    theirs = hugging_face(model.config)
    tensors = theirs.state_dict()
    with torch.no_grad():
        for name, parameter in model.language.named_parameters():
            if "gate_cross" in name or "gate_visual" in name:
                parameter.zero_()
            else:
                parameter.copy_(tensors[language_name("language." + name)])
        inputs = make_scene(model).inputs(model)
        torch.testing.assert_close(model(**inputs), theirs(inputs["token_ids"]).logits, **CLOSE)


def test_gates_open_the_view(model: StreamChat):
    inputs = make_scene(model).inputs(model)
    with torch.no_grad():
        seen = model(**inputs)
        other = model(**inputs | {"frame_features": inputs["frame_features"].roll(1, 0)})
    assert (seen - other).abs().amax() > 1e-3


def test_a_frame_after_t_changes_nothing_up_to_t(model: StreamChat):
    """Causality, bit for bit, at every position: the token made at t sees no frame captured after t."""
    scene = make_scene(model, seed=3)
    inputs = scene.inputs(model)
    with torch.no_grad():
        wanted = model(**inputs)
        for position in range(scene.asked - 1, len(scene.token_ids) - 1, 3):
            made_s = scene.text_times[position + 1]
            later = torch.tensor(scene.frame_times) > made_s
            changed = torch.where(
                later[:, None, None], 9.0 * torch.randn_like(scene.features), scene.features
            )
            got = model(**inputs | {"frame_features": changed})
            assert torch.equal(got[:, : position + 1], wanted[:, : position + 1])
            if (visible := inputs["visible"][0, position + 1] & later).any():
                assert not torch.equal(got, wanted), f"frames {visible.nonzero()} should show later"


def test_text_after_t_changes_nothing_up_to_t(model: StreamChat):
    inputs = make_scene(model).inputs(model)
    changed = inputs["token_ids"].clone()
    changed[0, 9:] = (changed[0, 9:] + 1) % model.config.vocab_size
    with torch.no_grad():
        assert torch.equal(model(**inputs)[:, :9], model(**inputs | {"token_ids": changed})[:, :9])


@pytest.mark.parametrize("shift", [1, 1000, 10_000_000])
def test_a_shift_of_all_indices_or_times_changes_no_logit(model: StreamChat, shift: int):
    scene = make_scene(model)
    inputs = scene.inputs(model)
    moved = {name: inputs[name] + shift for name in ("text_index", "frame_index")}
    scene.text_times = [time_s + shift for time_s in scene.text_times]
    scene.frame_times = [time_s + shift for time_s in scene.frame_times]
    with torch.no_grad():
        wanted = model(**inputs)
        assert torch.equal(model(**inputs | moved), wanted)
        assert torch.equal(model(**scene.inputs(model)), wanted)


def batch(model: StreamChat) -> tuple[list[dict[str, Tensor]], dict[str, Tensor]]:
    """Rows alone, and the same rows together: of two clips, padded on the right with text and with frames."""
    scenes = [make_scene(model, seed, num_turns=1 + seed % 2) for seed in range(4)]
    for scene in scenes[2:]:
        scene.features = scenes[0].features
    alone = [scene.inputs(model) for scene in scenes]
    longest = max(len(scene.token_ids) for scene in scenes)
    rows: dict[str, Tensor] = {}
    for name in ("token_ids", "text_index", "visible", "frame_index"):
        padded: list[Tensor] = []
        for row in alone:
            values = row[name]
            missing = longest - values.shape[1]
            if name != "frame_index" and missing:
                filling = torch.ones(1, missing, *values.shape[2:], dtype=values.dtype)
                values = torch.cat([values, filling], 1)
            padded.append(values)
        rows[name] = torch.cat(padded)
    rows["frame_features"] = torch.cat([scenes[0].features, scenes[1].features])
    num_frames = len(scenes[0].features)
    of_clip = torch.arange(2 * num_frames).view(2, -1)[torch.tensor([0, 1, 0, 0])]
    rows["frames_of_row"] = torch.cat([of_clip, torch.zeros(4, 5, dtype=torch.int64)], 1)
    rows["frame_index"] = torch.cat([rows["frame_index"], torch.zeros(4, 5, dtype=torch.int64)], 1)
    rows["visible"] = torch.cat([rows["visible"], torch.zeros(4, longest, 5, dtype=torch.bool)], 2)
    return alone, rows


def test_a_padded_batch_gives_each_row_what_it_gets_alone(model: StreamChat):
    alone, together = batch(model)
    with torch.no_grad():
        got = model(**together)
        for number, row in enumerate(alone):
            wanted = model(**row)[0]
            torch.testing.assert_close(got[number, : len(wanted)], wanted, **CLOSE)


def test_a_packed_row_gives_each_sample_what_it_gets_alone(model: StreamChat):
    """Two samples in one row: each one's text and frames behind the other's, hidden from it by the masks."""
    alone = [make_scene(model, seed).inputs(model) for seed in (0, 1)]
    lengths = [row["token_ids"].shape[1] for row in alone]
    sample = torch.repeat_interleave(torch.arange(2), torch.tensor(lengths))
    same = sample[:, None] == sample
    packed = {
        name: torch.cat([row[name] for row in alone], 1)
        for name in ("token_ids", "text_index", "frame_index")
    }
    packed["frame_features"] = torch.cat([row["frame_features"] for row in alone])
    packed["frames_of_row"] = torch.arange(len(packed["frame_features"]))[None]
    packed["visible"] = torch.block_diag(*(row["visible"][0].float() for row in alone)).bool()[None]
    packed["text_mask"] = (same & torch.ones_like(same).tril())[None]
    with torch.no_grad():
        wanted = torch.cat([model(**row)[0] for row in alone])
        torch.testing.assert_close(model(**packed)[0], wanted, **CLOSE)


def test_tokens_without_frames_learn_and_give_no_nan(model: StreamChat):
    inputs = make_scene(model).inputs(model)
    inputs["visible"][:, :8] = False
    model(**inputs).logsumexp(-1).sum().backward()
    missing = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    assert all(name.startswith("vision.") for name in missing)  # features came from outside
    for name, parameter in model.named_parameters():
        assert parameter.grad is None or parameter.grad.isfinite().all(), name


def test_without_any_frame_the_cross_layers_add_nothing(model: StreamChat):
    inputs = make_scene(model).inputs(model)
    inputs["visible"][:] = False
    blind = copy.deepcopy(model)
    with torch.no_grad():
        for name, parameter in blind.named_parameters():
            if name.endswith("gate_cross"):
                parameter.zero_()
        assert torch.equal(model(**inputs), blind(**inputs))


def cross_layer_by_the_paper(model: StreamChat, inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """The first layer, written out: each part behind its norm and gate. Returns text and visual states."""
    config, layer = model.config, model.language.layers[0]
    part: dict[str, Any] = dict(layer.named_modules())
    own, cross = part["self_attn"], part.get("cross_attn", part["self_attn"])
    gate = {
        name: scale.tanh() if config.gate == "tanh" else scale for name, scale in layer.named_parameters()
    }

    def norm(x: Tensor, name: str) -> Tensor:
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + config.rms_norm_eps) * part[name].weight

    def heads(x: Tensor) -> Tensor:
        return x.unflatten(-1, (-1, config.head_dim))

    def ffn(x: Tensor, name: str) -> Tensor:
        return part[name].down_proj(silu(part[name].gate_proj(x)) * part[name].up_proj(x))

    hidden = model.language.embed_tokens(inputs["token_ids"])
    visual = model.adapter(inputs["frame_features"])
    x, v = norm(hidden, "input_layernorm"), norm(visual, "input_layernorm")
    keys = rotate(heads(cross.k_proj(v)), model.rope.grid_rotation(x.device).unsqueeze(2))
    rotation = model.rope.rotation(inputs["text_index"]).unsqueeze(3)
    attend_frames = FrameAttention(model.rope, inputs["frame_index"], inputs["visible"])
    read = attend_frames(rotate(heads(cross.q_proj(x)), rotation), keys, heads(cross.v_proj(v)))
    hidden = hidden + gate["gate_cross"] * cross.o_proj(read.flatten(2))
    if "visual_ffn" in part:
        visual = visual + gate["gate_visual"] * ffn(norm(visual, "visual_norm"), "visual_ffn")
    x = norm(hidden, "input_layernorm")
    query, key, value = (heads(p(x)) for p in (own.q_proj, own.k_proj, own.v_proj))
    read = self_attention(rotate(query, rotation), rotate(key, rotation), value, None)
    hidden = hidden + own.o_proj(read.flatten(2))
    return hidden + ffn(norm(hidden, "post_attention_layernorm"), "mlp"), visual


def test_one_cross_layer_by_the_paper(model: StreamChat):
    inputs, layer = make_scene(model).inputs(model), model.language.layers[0]
    assert isinstance(layer, Layer)
    with torch.no_grad():
        hidden, visual = cross_layer_by_the_paper(model, inputs)
        rotation = model.rope.grid_rotation(torch.device("cpu")).unsqueeze(2)
        keys_values, got_visual = layer.forward_frames(model.adapter(inputs["frame_features"]), rotation)
        frames = FrameAttention(model.rope, inputs["frame_index"], inputs["visible"], inputs["frames_of_row"])
        text_rotation = model.rope.rotation(inputs["text_index"])
        attention = TrainingAttention(text_rotation, None, frames, keys_values)
        got = layer(model.language.embed_tokens(inputs["token_ids"].flatten()), attention)
    torch.testing.assert_close(got.view_as(hidden), hidden, **CLOSE)
    torch.testing.assert_close(got_visual, visual, **CLOSE)


@pytest.mark.parametrize("shape", sorted(SHAPES))
def test_switches_change_the_parts(shape: str):
    model = make_model(shape)
    config, names = model.config, [name for name, _ in model.language.named_parameters()]

    def layers_with(part: str) -> list[int]:
        return sorted({int(name.split(".")[1]) for name in names if f".{part}" in name})

    assert layers_with("gate_cross") == list(config.cross_layers)
    experts = list(config.cross_layers[:-1]) if config.visual_ffn else []
    assert layers_with("visual_ffn") == layers_with("visual_norm") == layers_with("gate_visual") == experts
    assert layers_with("cross_attn") == (
        [] if config.share_attention_parameters else list(config.cross_layers)
    )
    assert ("lm_head.weight" in names) is not config.tie_word_embeddings


def test_experts_start_as_copies():
    model = StreamChat(make_config("own_attention"))
    tensors = model.language.state_dict()
    copies = [name for name in tensors if any(p in name for p in ("visual_ffn", "visual_norm", "cross_attn"))]
    assert copies
    for name in copies:
        original = language_name("language." + name).removeprefix("model.")
        assert torch.equal(tensors[name], tensors[original])
    assert torch.equal(tensors["layers.0.gate_cross"], torch.full((48,), model.config.gate_init))


def test_without_frames_only_text_counts(model: StreamChat):
    """F = 0 gives what frames that nobody sees give, and what the engine gives a dialog without a camera's frames."""
    scene = make_scene(model).inputs(model)
    unseen = model(**scene | {"visible": torch.zeros_like(scene["visible"])})
    none = {name: scene[name][:, :0] for name in ("frames_of_row", "frame_index")}
    none["frame_features"] = scene["frame_features"][:0]
    logits = model(**scene | none | {"visible": scene["visible"][:, :, :0]})
    torch.testing.assert_close(logits, unseen, **CLOSE)
    engine = Engine(model, max_dialogs=1, max_cameras=1)
    engine.add_camera("none")
    engine.open_dialog("d", "none", scene["token_ids"][0, :6].tolist(), DialogOptions())
    torch.testing.assert_close(logits[:, 5], engine.logits(["d"]), **CLOSE)
