"""What weights are made of while they are used: the files' own numbers, bfloat16, or 8 bits by torchao."""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from model.runtime.packed_weights import Quantise

Weights = Literal["auto", "float32", "bfloat16", "int8", "float8"]


def weights_named(name: str) -> Weights:
    """The name, checked; raises ValueError saying what was got and what is wanted."""
    for known in get_args(Weights):
        if name == known:
            return known
    raise ValueError(f"weights: got {name!r}, wanted one of {', '.join(get_args(Weights))}")


def dtype_of(weights: Weights, device: torch.device | str) -> torch.dtype:
    """Of the numbers that are computed with: `auto` and 8-bit weights are bfloat16 on a GPU, float32 on a CPU."""
    if weights in ("float32", "bfloat16"):
        return torch.float32 if weights == "float32" else torch.bfloat16
    return torch.bfloat16 if torch.device(device).type == "cuda" else torch.float32


def quantise_to(weights: Weights) -> Quantise | None:
    """What the engine does with each of the text's weight matrices; None: nothing.

    8 bits a weight and one scale a row; numbers that are computed with stay what they are. Frames' weights are not
    touched: they are read once a frame, not once a token. Raises ImportError without torchao (the `quantised` extra).
    """
    if weights not in ("int8", "float8"):
        return None
    if importlib.util.find_spec("torchao") is None:
        raise ImportError(f"{weights} weights need torchao: pip install 'streamchat[quantised]'")
    torchao: Any = importlib.import_module("torchao.quantization")
    config = torchao.Int8WeightOnlyConfig() if weights == "int8" else torchao.Float8WeightOnlyConfig()

    def quantise(weight: Tensor) -> Tensor:
        holder = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
        holder.weight = nn.Parameter(weight.contiguous(), requires_grad=False)
        torchao.quantize_(holder, config)
        return holder.weight

    return quantise
