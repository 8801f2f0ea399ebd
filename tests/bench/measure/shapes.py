"""Models with random weights in the measured sizes, and input for them.

Letters: N frames, P visual tokens a frame, Dv the vision encoder's width.
"""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from model.config import StreamChatConfig, preset
from model.network.streamchat import StreamChat

# Qwen2.5-0.5B's published shape.
QWEN25_05B: dict[str, Any] = {
    "name": "streamchat-0.5b",
    "vocab_size": 151936,
    "hidden_size": 896,
    "intermediate_size": 4864,
    "num_hidden_layers": 24,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "tie_word_embeddings": True,
}
SHAPES = ("tiny", "0.5b", "7b", "14b")


def make_config(shape: str, *, visual_tokens: int = 0, fifo_frames: int = 32) -> StreamChatConfig:
    """The shape's configuration; `visual_tokens` P other than its own must be a square number."""
    if shape not in SHAPES:
        raise ValueError(f"shape: got {shape!r}, wanted one of {', '.join(SHAPES)}")
    grid = math.isqrt(visual_tokens)
    if grid**2 != visual_tokens:
        raise ValueError(f"visual_tokens: got {visual_tokens}, wanted a square number")
    own = StreamChatConfig(**QWEN25_05B) if shape == "0.5b" else preset(shape)
    vision = replace(
        own.vision, num_hidden_layers=1
    )  # frames come encoded: of the encoder only P and Dv matter
    if visual_tokens:
        vision = replace(vision, image_size=grid * vision.patch_size)
    return replace(own, vision=vision, fifo_frames=fifo_frames)


def make_model(config: StreamChatConfig, device: torch.device, dtype: torch.dtype) -> StreamChat:
    """Random weights, made where they are used; small gates, as training starts with."""
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            return StreamChat(config).eval().requires_grad_(False)
    finally:
        torch.set_default_dtype(before)


def with_frames(model: StreamChat, num: int) -> StreamChat:
    """The same weights with a FIFO of `num` frames."""
    other = copy.copy(model)
    other.config = replace(model.config, fifo_frames=num)
    return other


def make_frames(model: StreamChat, num: int, seed: int = 0) -> Tensor:
    """Random vision features of N frames: [N, P, Dv]."""
    vision = model.config.vision
    generator = torch.Generator().manual_seed(seed)
    made = torch.randn(num, vision.num_visual_tokens, vision.hidden_size, generator=generator)
    return made.to(next(model.parameters()).device, model.dtype)


def make_text(model: StreamChat, num: int, seed: int = 0) -> list[int]:
    """Random tokens for a question."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(1, model.config.vocab_size, (num,), generator=generator).tolist()


def decode_bytes(model: StreamChat) -> int:
    """Bytes of the weights that one step reads: all of the language model but V-FFNs and, untied, embeddings."""
    tied = model.config.tie_word_embeddings
    return sum(
        weight.numel() * weight.element_size()
        for name, weight in model.language.named_parameters()
        if "visual" not in name and (tied or not name.startswith("embed_tokens"))
    )
