"""Assembles a StreamChat folder from Hugging Face folders of SigLIP and of Qwen2 or a Llama-shaped language model.

V-FFNs start as copies of the language model's FFNs, and cross-attention shares its attention (paper, section 2.1).
Tensors are copied from file to file in chunks, so a model of any size needs little memory.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor, nn
from transformers import LlamaConfig, Qwen2Config, SiglipVisionConfig

from model.checkpoint.folder import SHARD_BYTES, plan_shards, shard_files, write_index
from model.checkpoint.tensor_files import StoredTensor, stored_tensors, write_tensors
from model.checkpoint.tokenizer import copy_tokenizer, tokenizer_files
from model.config import StreamChatConfig, VisionConfig
from model.network.streamchat import StreamChat

Progress = Callable[[int, int], None]  # bytes written, total bytes

# Parts of parameter names: ours, Hugging Face's.
LANGUAGE_NAMES = (
    (".visual_ffn.", ".mlp."),
    (".visual_norm.", ".post_attention_layernorm."),
    (".cross_attn.", ".self_attn."),
    ("language.lm_head.", "lm_head."),
    ("language.", "model."),
)
VISION_PREFIXES = (  # of SiglipVisionModel, SiglipModel and PaliGemma, in older and newer transformers
    "",
    "vision_model.",
    "vision_tower.",
    "vision_tower.vision_model.",
    "model.vision_tower.",
    "model.vision_tower.vision_model.",
)
DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
FIRST_VISION_TENSOR = "embeddings.patch_embedding.weight"


def language_name(name: str) -> str:
    """Hugging Face's name of the tensor that initialises our parameter `name` (`language.…`)."""
    for ours, theirs in LANGUAGE_NAMES:
        name = name.replace(ours, theirs)
    return name


def show_progress(written: int, total: int) -> None:
    """Show progress in one line on stderr."""
    line = f"\rassembling: {written / 1e9:.2f} of {total / 1e9:.2f} GB ({written * 100 // max(total, 1)} %)"
    print(line, end="\n" if written == total else "", file=sys.stderr, flush=True)


def assemble(
    vision: Path,
    language: Path,
    out: Path,
    progress: Progress = show_progress,
    *,
    changes: Mapping[str, Any] | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> StreamChatConfig:
    """Write the StreamChat folder `out`; returns its config. Weights keep the dtype of their files.

    Args:
        vision: folder of a SiglipVisionModel, a SiglipModel or a PaliGemma model (its vision part is taken).
        language: folder of a Qwen2ForCausalLM or LlamaForCausalLM, with its tokenizer.
        out: a folder that does not exist, or is empty.
        progress: called after each chunk with the bytes written and the total.
        changes: fields of the config to override, such as the switches of the paper's Table 3.

    Raises:
        FileNotFoundError: a folder lacks its config, weights or tokenizer.
        FileExistsError: `out` is not empty.
        ValueError: a model of another architecture, a damaged file, or a tensor of a wrong shape; names it.
    """
    if out.exists() and any(out.iterdir()):
        raise FileExistsError(f"{out} is not empty")
    tokenizer_files(language)
    fields: dict[str, Any] = {"name": f"streamchat-{language.resolve().name}".lower()}
    fields |= _language_fields(language) | {"vision": _vision_config(vision)} | dict(changes or {})
    config = StreamChatConfig(**fields)
    tensors = _plan_tensors(config, vision, language)
    sizes = {name: tensor.num_bytes for name, tensor in tensors.items()}
    shards = plan_shards(sizes.items(), shard_bytes)
    out.mkdir(parents=True, exist_ok=True)
    copy_tokenizer(language, out)
    written, total = 0, sum(sizes.values())
    for names, file in zip(shards, shard_files(shards), strict=True):
        for num_bytes in write_tensors(out / file, {name: tensors[name] for name in names}):
            written += num_bytes
            progress(written, total)
    write_index(out, shards, total)
    config.save(out)  # last: a folder without a config is incomplete
    return config


def _plan_tensors(config: StreamChatConfig, vision: Path, language: Path) -> dict[str, StoredTensor]:
    """The source of each parameter's bytes."""
    with torch.device("meta"):
        model = StreamChat(config)
    vision_tensors, language_tensors = stored_tensors(vision), stored_tensors(language)
    prefix = next((p for p in VISION_PREFIXES if p + FIRST_VISION_TENSOR in vision_tensors), None)
    if prefix is None:
        raise ValueError(f"{vision} has no SigLIP weights: there is no tensor {FIRST_VISION_TENSOR}")
    initialised = _new_tensors(config, language_tensors)
    plan: dict[str, StoredTensor] = {}
    used: set[str] = set()
    for name, parameter in model.named_parameters():
        if name in initialised:
            plan[name] = initialised[name]
        elif name.startswith("vision."):
            theirs = prefix + name.removeprefix("vision.encoder.")
            plan[name] = _checked(vision, vision_tensors, theirs, parameter)
        else:
            theirs = language_name(name)
            used.add(theirs)
            plan[name] = _checked(language, language_tensors, theirs, parameter)
    if unknown := sorted(
        name for name in set(language_tensors) - used if name != "lm_head.weight" and "inv_freq" not in name
    ):
        raise ValueError(
            f"{language}: {len(unknown)} tensors have no counterpart in this network, such as {unknown[0]}"
        )
    return plan


def _checked(
    folder: Path, tensors: Mapping[str, StoredTensor], name: str, wanted: nn.Parameter
) -> StoredTensor:
    if name not in tensors:
        raise ValueError(f"{folder}: tensor {name} is missing")
    tensor = tensors[name]
    if tensor.shape != tuple(wanted.shape):
        raise ValueError(f"{folder}: tensor {name} has shape {tensor.shape}, wanted {tuple(wanted.shape)}")
    if tensor.dtype not in DTYPES:
        raise ValueError(f"{folder}: tensor {name} is {tensor.dtype}, wanted plain floats (not quantised)")
    return tensor


def _new_tensors(
    config: StreamChatConfig, language_tensors: Mapping[str, StoredTensor]
) -> dict[str, StoredTensor]:
    """The adapter (random, from a fixed seed) and the gates, in the language model's dtype."""
    first = language_tensors.get("model.embed_tokens.weight")
    dtype = first.dtype if first is not None and first.dtype in DTYPES else "F32"
    tensors: dict[str, StoredTensor] = {}
    generator = torch.Generator().manual_seed(0)
    for position, width in ((0, config.vision.hidden_size), (2, config.hidden_size)):
        weight = torch.empty(config.hidden_size, width)
        nn.init.uniform_(weight, -(width**-0.5), width**-0.5, generator=generator)
        tensors[f"adapter.{position}.weight"] = _in_memory(weight, dtype)
        tensors[f"adapter.{position}.bias"] = _in_memory(torch.zeros(config.hidden_size), dtype)
    gate = _in_memory(torch.full((config.hidden_size,), config.gate_init), dtype)
    for layer in config.cross_layers:
        tensors |= {f"language.layers.{layer}.{name}": gate for name in ("gate_cross", "gate_visual")}
    return tensors


def _in_memory(values: Tensor, dtype: str) -> StoredTensor:
    data = values.to(DTYPES[dtype]).view(torch.uint8).numpy().tobytes()
    return StoredTensor(data, dtype, tuple(values.shape), 0, len(data))


def _vision_config(folder: Path) -> VisionConfig:
    values = _json_config(folder)
    kind = values.get("model_type")
    if kind not in ("siglip", "siglip_vision_model", "paligemma"):
        raise ValueError(
            f"{folder}: model_type is {kind!r}, wanted 'siglip', 'siglip_vision_model' or 'paligemma'"
        )
    read = SiglipVisionConfig(**values.get("vision_config", values if kind == "siglip_vision_model" else {}))
    return VisionConfig(**{field.name: getattr(read, field.name) for field in fields(VisionConfig)})


def _language_fields(folder: Path) -> dict[str, Any]:
    """The fields of our config that come from a language model's config."""
    values = _json_config(folder)
    kind = values.get("model_type")
    if kind not in ("qwen2", "llama"):
        raise ValueError(f"{folder}: model_type is {kind!r}, wanted 'qwen2' or 'llama'")
    try:
        read = Qwen2Config(**values) if kind == "qwen2" else LlamaConfig(**values)
    except StrictDataclassError as error:
        raise ValueError(f"{folder}: its config.json contradicts itself: {error}") from error
    rope: dict[str, Any] = dict(read.rope_parameters or {})
    wanted: dict[str, tuple[Any, Any]] = {  # name: (value, the only one that this network supports)
        "hidden_act": (read.hidden_act, "silu"),
        "rope_type": (rope.get("rope_type", "default"), "default"),
        "use_sliding_window": (getattr(read, "use_sliding_window", False), False),
        "attention_bias": (kind == "llama" and bool(values.get("attention_bias")), False),
        "mlp_bias": (bool(values.get("mlp_bias")), False),
    }
    for name, (got, supported) in wanted.items():
        if got != supported:
            raise ValueError(f"{folder}: {name} is {got!r}, wanted {supported!r}")
    names = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    names += ("num_key_value_heads", "rms_norm_eps", "tie_word_embeddings", "max_position_embeddings")
    return {name: getattr(read, name) for name in names} | {
        "head_dim": getattr(read, "head_dim", None) or read.hidden_size // read.num_attention_heads,
        "rope_theta": rope["rope_theta"],
        "attention_bias": kind == "qwen2",
    }


def _json_config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    if not path.is_file():
        raise FileNotFoundError(f"{folder} is no Hugging Face model folder: it has no config.json")
    return json.loads(path.read_text())
