"""The initial model of a run: a given folder, a copy with other switches (Table 3), or a new streamchat-tiny."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from model.checkpoint.folder import load_model, save_folder
from model.config import StreamChatConfig
from model.network.layer import Layer
from model.network.streamchat import StreamChat
from training.live_world.tiny_tokenizer import make_tokenizer
from training.optimise.trainable import set_trainable
from training.run.recipe import Recipe
from training.run.tiny_init import new_tiny_model


def prepare_initial_model(recipe: Recipe, given: Path, work: Path) -> Path:
    """`given` if it has the recipe's switches, else a copy in `work` that has them."""
    config = StreamChatConfig.load(given)
    names = ("visual_ffn", "gate", "share_attention_parameters")
    switches: dict[str, Any] = {n: getattr(recipe, n) for n in names if getattr(recipe, n) is not None}
    if all(getattr(config, name) == value for name, value in switches.items()):
        return given
    if not (work / "config.json").is_file():
        save_folder(with_switches(load_model(given), replace(config, **switches)), work, tokenizer=given)
    return work


def meta_model(config: StreamChatConfig, recipe: Recipe) -> StreamChat:
    """A model without memory, with the recipe's parts set to learn. Raises ValueError for an unknown part."""
    with torch.device("meta"):
        model = StreamChat(config)
    set_trainable(model, recipe.trainable)
    return model


def with_switches(model: StreamChat, config: StreamChatConfig) -> StreamChat:
    """A model of another configuration. It keeps the weights that both have; new ones start as copies of the text's."""
    switched = StreamChat(config)
    names = set(switched.state_dict())
    kept = {name: tensor for name, tensor in model.state_dict().items() if name in names}
    switched.load_state_dict(kept, strict=False)
    for layer in switched.language.layers:
        assert isinstance(layer, Layer)
        layer.copy_experts()
    switched.load_state_dict(kept, strict=False)  # again, because copy_experts has overwritten trained V-FFNs
    return switched


def new_tiny_folder(work: Path, vision: Path | None, seed: int) -> Path:
    """A new streamchat-tiny with its tokenizer. `vision`: weights that pretrain_vision.py wrote."""
    if not (work / "config.json").is_file():
        work.mkdir(parents=True, exist_ok=True)
        save_folder(new_tiny_model(vision, make_tokenizer(work), seed), work)
    return work
