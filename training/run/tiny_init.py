"""A new streamchat-tiny, with initial weights that let it learn fast without a pretrained language model."""

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
    """A new tiny model. `vision`: weights of a pretrained vision encoder, if there is one."""
    torch.manual_seed(seed)
    # There is no pretrained language model to protect, so the gates start at 1.
    model = StreamChat(preset("tiny", vocab_size=len(tokenizer), gate_init=1.0))
    init_attention_as_copy(model)
    init_attention_by_similarity(model)
    init_embeddings_by_kind(model, tokenizer)
    if vision is not None:
        model.vision.load_state_dict(load_file(vision))
    return model


@torch.no_grad()
def init_attention_as_copy(model: StreamChat) -> None:
    """Let each attention layer start by copying what it attends to: the product of value and output projection
    is a projection on a subspace.

    With grounding, the features of a frame are near the embeddings of their words, so the model can name them early.
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
    """Let words of one kind (things, colours, ...) start near each other, as in a pretrained language model.

    Then the model can find the topic of a question by its kind, and need not learn it word by word.
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
    """Let the later cross layers start by attending to frames that are similar to the current words.

    The first cross layer comes before any text attention. Its gate starts small, so that frames do not hide the text.
    """
    first, *later = model.config.cross_layers
    size = model.config.head_dim
    heads_a_group = model.config.num_attention_heads // model.config.num_key_value_heads
    for index in later:
        layer = model.language.layers[index]
        assert isinstance(layer, Layer)
        keys = nn.init.orthogonal_(layer.self_attn.k_proj.weight).unflatten(0, (-1, size))
        # Only one head of each group: two heads that start equal stay equal.
        queries = layer.self_attn.q_proj.weight.unflatten(0, (-1, heads_a_group, size))
        queries[:, 0] = keys
    layer = model.language.layers[first]
    assert isinstance(layer, Layer)
    assert layer.gate_cross is not None
    nn.init.constant_(layer.gate_cross, 0.1)
