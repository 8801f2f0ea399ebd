"""Model FLOPS utilisation (MFU): the operations of a step, divided by what the device could do in the same time.

The count has two operations for each multiplication with a weight, and three times that for weights that learn. It
leaves out attention scores, so the MFU is a little too low.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch

from model.network.streamchat import StreamChat
from training.optimise.trainable import component_of

PEAKS = {  # dense bfloat16 operations per second, from the data sheets
    "B200": 2250e12,
    "H200": 989e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L4": 121e12,
    "A10": 125e12,
    "T4": 65e12,
}


@dataclass(frozen=True, slots=True)
class TrainingFlops:
    """Operations of training: for a text token, for a frame from its pixels, and for a frame from its features."""

    per_token: float
    per_frame: float
    per_encoded_frame: float

    @staticmethod
    def of(model: StreamChat) -> TrainingFlops:
        """Count the operations of a model that is not sharded yet."""
        sizes = dict.fromkeys(("adapter", "vision", "visual_ffn", "language"), 0)
        for name, parameter in model.named_parameters():
            component = component_of(name)
            looked_up = name.endswith("embed_tokens.weight") and model.language.lm_head is not None
            if parameter.ndim > 1 and component in sizes and not looked_up:
                sizes[component] += parameter.numel()
        config = model.config
        keys_values = 2 * config.hidden_size * config.num_key_value_heads * config.head_dim
        frame_path = sizes["adapter"] + sizes["visual_ffn"] + len(config.cross_layers) * keys_values
        encoder_learns = any(p.requires_grad for p in model.vision.parameters())
        patches = config.vision.num_visual_tokens
        encoder = (6 if encoder_learns else 2) * sizes["vision"] * patches
        language_learns = any(p.requires_grad for p in model.language.layers.parameters())
        return TrainingFlops(
            (6 if language_learns else 4) * sizes["language"],
            6 * frame_path * patches + encoder,
            6 * frame_path * patches,
        )


def peak_flops(device: torch.device) -> float:
    """Peak operations per second of a device: from the table for known GPUs, measured for any other device."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        for known, peak in PEAKS.items():
            if known in name:
                return peak
    matrix = torch.randn(512, 512, device=device)
    best_s = float("inf")
    for _ in range(8):
        started_s = time.perf_counter()
        product = matrix @ matrix
        float(product[0, 0])  # waits for the result
        best_s = min(best_s, time.perf_counter() - started_s)
    return 2 * 512**3 / best_s
