"""Estimates the memory of a GPU in training, line by line, from the shapes of a model on the meta device.

Letters: N text tokens and M frames of a micro-batch, P visual tokens of a frame, D and I the language model's widths,
Dv and Iv the encoder's, V the vocabulary's size. bfloat16 takes 2 bytes, float32 4.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn

from model.network.streamchat import StreamChat
from training.run.recipe import Recipe


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What a worker has at once. `shards`: GPUs that share the weights (`sharding.make_mesh`)."""

    num_tokens: int
    num_frames: int
    shards: int
    loss_share: float = 0.5  # of the tokens, those of answers


def memory_lines(model: StreamChat, recipe: Recipe, load: Load) -> dict[str, float]:
    """Bytes of each kind. `model`: on the meta device, with the recipe's parts set to learn."""
    return {
        **dict(_state(model, load.shards)),
        **dict(_gathered(model)),
        **dict(_activations(model, recipe, load)),
    }


def _numel(module: nn.Module, *, learning: bool = False) -> int:
    return sum(p.numel() for p in module.parameters() if p.requires_grad or not learning)


def _state(model: StreamChat, shards: int) -> Iterator[tuple[str, float]]:
    learning = _numel(model, learning=True)
    yield "weights (float32, a shard)", 4 * _numel(model) / shards
    yield "gradients (float32, a shard)", 4 * learning / shards
    yield "AdamW's moments (float32, a shard)", 8 * learning / shards


def _gathered(model: StreamChat) -> Iterator[tuple[str, float]]:
    """Whole weights while they are used: the root's during the whole step, and two layers, one of them in advance."""
    layers = [*model.language.layers, *model.vision.encoder.encoder.layers]
    root = _numel(model) - sum(map(_numel, layers))
    root_learning = _numel(model, learning=True) - sum(_numel(layer, learning=True) for layer in layers)
    largest = max(map(_numel, layers))
    largest_learning = max(_numel(layer, learning=True) for layer in layers)
    yield "whole embeddings, head and adapter (bfloat16)", 2 * root
    yield "two whole layers (bfloat16)", 2 * 2 * largest
    yield "whole gradients of the root and a layer (float32)", 4 * (root_learning + largest_learning)


def _activations(model: StreamChat, recipe: Recipe, load: Load) -> Iterator[tuple[str, float]]:
    config, vision = model.config, model.config.vision
    visual = load.num_frames * vision.num_visual_tokens
    keys_values = 2 * config.num_key_value_heads * config.head_dim
    num_cross, num_text = len(config.cross_layers), config.num_hidden_layers
    text_layer = 2 * load.num_tokens * (10 * config.hidden_size + keys_values + 3 * config.intermediate_size)
    frame_layer = 2 * visual * (3 * config.hidden_size + keys_values + 3 * config.intermediate_size)
    vision_layer = 2 * visual * (6 * vision.hidden_size + 2 * vision.intermediate_size)
    encoder_learns = any(p.requires_grad for p in model.vision.parameters())
    num_vision = vision.num_hidden_layers if encoder_learns else 0
    yield "keys and values of the frames (bfloat16)", 2 * visual * keys_values * num_cross
    if recipe.checkpoint_activations:
        yield "inputs of the text layers (bfloat16)", 2 * load.num_tokens * config.hidden_size * num_text
        yield "inputs of the frame layers (bfloat16)", 2 * visual * config.hidden_size * num_cross
        yield "inputs of the encoder's layers (bfloat16)", 2 * visual * vision.hidden_size * num_vision
        yield "one layer, computed again", max(text_layer, frame_layer, vision_layer if num_vision else 0)
    else:
        yield "text layers", text_layer * num_text
        yield "frame layers", frame_layer * num_cross
        yield "encoder's layers", max(vision_layer * num_vision, vision_layer)
    # linear_cross_entropy has at most 4 bytes for each logit (`tests/training/optimise/test_token_loss.py`).
    yield "logits, in chunks", 4 * load.loss_share * load.num_tokens * config.vocab_size
