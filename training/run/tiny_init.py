"""A new streamchat-tiny: weights that let it learn fast without a pretrained language model."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn
from transformers import PreTrainedTokenizerFast

from model.config import preset
from model.network.layer import Layer
from model.network.streamchat import StreamChat
from training.live_world.answers import SLOTS


def new_tiny_model(vision: Path | None, tokenizer: PreTrainedTokenizerFast, seed: int) -> StreamChat:
    """A new tiny model, around a taught vision encoder if there is one."""
    torch.manual_seed(seed)
    # No language model to protect: nothing need start small.
    model = StreamChat(preset("tiny", vocab_size=len(tokenizer), gate_init=1.0))
    init_attention_as_copy(model)
    init_attention_by_similarity(model)
    init_embeddings_by_kind(model, tokenizer)
    if vision is not None:
        model.vision.load_state_dict(load_file(vision))
    return model


@torch.no_grad()
def init_attention_as_copy(model: StreamChat) -> None:
    """Let attention begin by handing on what it reads: output times value projection is a projection on a subspace.

    With grounding, what is read from a frame is near the words for it, so naming starts from the first step on.
    """
    size = model.config.head_dim
    heads_a_group = model.config.num_attention_heads // model.config.num_key_value_heads
    for layer in model.language.layers:
        assert isinstance(layer, Layer)
        values, output = layer.self_attn.v_proj.weight, layer.self_attn.o_proj.weight
        nn.init.orthogonal_(values)
        groups = values.unflatten(0, (-1, size)).repeat_interleave(heads_a_group, 0)  # [H, d, D]
        output.copy_(groups.permute(2, 0, 1).flatten(1) / heads_a_group)


@torch.no_grad()
def init_embeddings_by_kind(model: StreamChat, tokenizer: PreTrainedTokenizerFast) -> None:
    """Words of one kind (things, colours, ...) start near each other, as they are in a language model that has read.

    Then what a question is about can be found by its kind, and needs not be learnt word by word.
    """
    embeddings = model.language.embed_tokens.weight
    spread = float(embeddings.std())
    near = {kind: torch.randn(embeddings.shape[1]) * spread for kind in sorted(set(SLOTS.values()))}
    moved: set[int] = set()
    for word, kind in SLOTS.items():
        for space in ("", " "):
            ids: list[int] = tokenizer(space + word, add_special_tokens=False)["input_ids"]  # type: ignore[assignment]
            if len(ids) == 1 and ids[0] not in moved:
                embeddings[ids[0]] += near[kind]
                moved.add(ids[0])


@torch.no_grad()
def init_attention_by_similarity(model: StreamChat) -> None:
    """The layers that look after text was read begin by looking for what is like the words at hand.

    The first cross layer looks before text is read: its gate starts small, lest what it sees drown the question.
    """
    first, *later = model.config.cross_layers
    size = model.config.head_dim
    heads_a_group = model.config.num_attention_heads // model.config.num_key_value_heads
    for index in later:
        layer = model.language.layers[index]
        assert isinstance(layer, Layer)
        keys = nn.init.orthogonal_(layer.self_attn.k_proj.weight).unflatten(0, (-1, size))
        # One head of each group: two that start alike would stay alike.
        queries = layer.self_attn.q_proj.weight.unflatten(0, (-1, heads_a_group, size))
        queries[:, 0] = keys
    layer = model.language.layers[first]
    assert isinstance(layer, Layer)
    assert layer.gate_cross is not None
    nn.init.constant_(layer.gate_cross, 0.1)
