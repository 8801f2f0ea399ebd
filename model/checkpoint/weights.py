"""The format of weights in memory: that of the files, float32, bfloat16, or 8 bits through torchao."""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from model.runtime.packed_weights import Quantise

WeightFormat = Literal["auto", "float32", "bfloat16", "int8", "float8"]


def parse_weight_format(name: str) -> WeightFormat:
    """Raises ValueError for an unknown name."""
    for known in get_args(WeightFormat):
        if name == known:
            return known
    raise ValueError(f"weights: got {name!r}, wanted one of {', '.join(get_args(WeightFormat))}")


def compute_dtype(weights: WeightFormat, device: torch.device | str) -> torch.dtype:
    """The dtype of activations: with `auto` and 8-bit weights bfloat16 on a GPU and float32 on a CPU."""
    if weights in ("float32", "bfloat16"):
        return torch.float32 if weights == "float32" else torch.bfloat16
    return torch.bfloat16 if torch.device(device).type == "cuda" else torch.float32


def quantise_to(weights: WeightFormat) -> Quantise | None:
    """The function that quantises a weight matrix; None if `weights` is not an 8-bit format.

    It keeps 8 bits a weight and one scale a row; activations stay as they are. The engine quantises the weights for
    text only: those for frames are read once a frame, not once a token. Raises ImportError without torchao (the
    `quantised` extra).
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
