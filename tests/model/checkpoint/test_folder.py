"""StreamChat folders: written, sharded, read, and refused when they are damaged."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from model.checkpoint.folder import INDEX, WEIGHTS, load_model, load_vision, plan_shards, save_folder
from model.network.streamchat import StreamChat
from tests.model.scenes import make_model, make_scene


@pytest.fixture
def small() -> StreamChat:
    return make_model("gqa_tied")


@pytest.mark.parametrize("shard_bytes", [10_000_000, 60_000])
def test_what_is_saved_is_loaded(model: StreamChat, tmp_path: Path, shard_bytes: int):
    save_folder(model, tmp_path, shard_bytes=shard_bytes)
    assert (tmp_path / INDEX).exists() == (shard_bytes == 60_000)
    loaded = load_model(tmp_path)
    assert loaded.config == model.config
    assert not loaded.training
    inputs = make_scene(model).inputs(model)
    pixels = torch.randint(0, 256, (2, 24, 24, 3), dtype=torch.uint8)
    with torch.no_grad():
        assert torch.equal(loaded(**inputs), model(**inputs))
        assert torch.equal(loaded.vision(pixels), model.vision(pixels))
        assert torch.equal(load_vision(tmp_path)(pixels), model.vision(pixels))


def test_saving_again_replaces_all_of_the_old(small: StreamChat, tmp_path: Path):
    save_folder(small, tmp_path, shard_bytes=60_000)
    save_folder(small, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", WEIGHTS]
    load_model(tmp_path)


def test_weights_are_loaded_in_the_precision_asked_for(small: StreamChat, tmp_path: Path):
    save_folder(small, tmp_path)
    loaded = load_model(tmp_path, dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.bfloat16}
    inputs = make_scene(small).inputs(small)
    with torch.no_grad():
        assert loaded(**inputs).isfinite().all()


def test_a_loaded_model_can_be_trained(small: StreamChat, tmp_path: Path):
    save_folder(small, tmp_path)
    loaded = load_model(tmp_path).train()
    loaded(**make_scene(small).inputs(small)).sum().backward()
    assert loaded.adapter[0].weight.grad is not None


def test_other_users_may_read_what_the_umask_lets_them_read(small: StreamChat, tmp_path: Path):
    """The weights have the permissions of the folder's other files."""
    save_folder(small, tmp_path, shard_bytes=60_000)
    wanted = (tmp_path / "config.json").stat().st_mode
    assert {path.stat().st_mode for path in tmp_path.iterdir()} == {wanted}


def test_shards_are_cut_between_tensors():
    assert plan_shards([("a", 4), ("b", 4), ("c", 9), ("d", 1)], 8) == [["a", "b"], ["c"], ["d"]]


def test_a_damaged_folder_is_refused_with_the_reason(small: StreamChat, tmp_path: Path):
    with pytest.raises(FileNotFoundError, match=r"no config\.json"):
        load_model(tmp_path)
    small.config.save(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"neither model\.safetensors nor"):
        load_model(tmp_path)
    save_folder(small, tmp_path)
    tensors = load_file(tmp_path / WEIGHTS)
    norm = tensors.pop("language.norm.weight")
    save_file(tensors, tmp_path / WEIGHTS)
    with pytest.raises(ValueError, match=r"1 tensors are missing, the first is language\.norm\.weight"):
        load_model(tmp_path)
    save_file(tensors | {"language.norm.weight": norm[:-1].clone()}, tmp_path / WEIGHTS)
    with pytest.raises(ValueError, match=r"language\.norm\.weight has shape \(47,\), wanted \(48,\)"):
        load_model(tmp_path)
    save_file(tensors | {"language.norm.weight": norm, "more": norm.clone()}, tmp_path / WEIGHTS)
    with pytest.raises(ValueError, match="tensor more is unknown"):
        load_model(tmp_path)
    whole = (tmp_path / WEIGHTS).read_bytes()
    for part in (whole[: len(whole) // 2], whole[:5], b"", b"\xff" * 100):
        (tmp_path / WEIGHTS).write_bytes(part)
        with pytest.raises(ValueError, match="damaged or cut short"):
            load_model(tmp_path)


def test_a_missing_shard_is_named(small: StreamChat, tmp_path: Path):
    save_folder(small, tmp_path, shard_bytes=60_000)
    gone = sorted(tmp_path.glob("model-*.safetensors"))[1]
    gone.unlink()
    with pytest.raises(FileNotFoundError, match=gone.name):
        load_model(tmp_path)


def test_a_folder_of_another_model_is_refused(tmp_path: Path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen2"}))
    with pytest.raises(ValueError, match="model_type is 'qwen2', wanted 'streamchat'"):
        load_model(tmp_path)
