"""The folder that training starts from: as given, with Table 3's switches set, or a new streamchat-tiny."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from model.checkpoint.folder import load_model, save_folder
from model.config import StreamChatConfig
from model.network.layer import Layer
from model.network.streamchat import StreamChat
from training.live_world.tiny_tokenizer import make_tokenizer
from training.run.recipe import Recipe
from training.run.tiny_init import new_tiny_model


def prepare_start_folder(recipe: Recipe, given: Path, work: Path) -> Path:
    """`given`, or a copy in `work` whose shape is as the recipe's switches want it."""
    config = StreamChatConfig.load(given)
    switches = ("visual_ffn", "gate", "share_attention_parameters")
    wanted: dict[str, Any] = {s: getattr(recipe, s) for s in switches if getattr(recipe, s) is not None}
    if all(getattr(config, name) == value for name, value in wanted.items()):
        return given
    if not (work / "config.json").is_file():
        save_folder(with_switches(load_model(given), replace(config, **wanted)), work, tokenizer=given)
    return work


def with_switches(model: StreamChat, config: StreamChatConfig) -> StreamChat:
    """The model in another shape: what both have is kept, what is new starts as a copy of what text uses."""
    made = StreamChat(config)
    places = set(made.state_dict())
    known = {name: tensor for name, tensor in model.state_dict().items() if name in places}
    made.load_state_dict(known, strict=False)
    for layer in made.language.layers:
        assert isinstance(layer, Layer)
        layer.copy_experts()
    made.load_state_dict(known, strict=False)  # again: a V-FFN that has learnt is no copy any more
    return made


def new_tiny_folder(work: Path, vision: Path | None, seed: int) -> Path:
    """A new streamchat-tiny with its tokenizer; `vision`: what pretrain_vision.py wrote."""
    if not (work / "config.json").is_file():
        work.mkdir(parents=True, exist_ok=True)
        save_folder(new_tiny_model(vision, make_tokenizer(work), seed), work)
    return work
