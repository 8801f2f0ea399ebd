"""How well the hardware is used: operations that a step needs, against what the device could do in its time (MFU).

Counted are multiplications with weights, two operations each, three times over where weights learn. Reading
frames and text by attention is not counted, so the figure is a little low, never high.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch

from model.network.streamchat import StreamChat
from training.optimise.trainable import component_of

PEAKS = {  # dense bfloat16 operations a second, from the makers' data sheets
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
    """Operations of training: by text token, by frame from pixels on, and by frame from the encoder's output on."""

    token: float
    frame: float
    per_encoded_frame: float

    @staticmethod
    def of(model: StreamChat) -> TrainingFlops:
        """Count a model's weights (before it is sharded)."""
        sizes = dict.fromkeys(("adapter", "vision", "visual_ffn", "language"), 0)
        for name, parameter in model.named_parameters():
            part = component_of(name)
            looked_up = name.endswith("embed_tokens.weight") and model.language.lm_head is not None
            if parameter.ndim > 1 and part in sizes and not looked_up:
                sizes[part] += parameter.numel()
        config = model.config
        keys_values = 2 * config.hidden_size * config.num_key_value_heads * config.head_dim
        chain = sizes["adapter"] + sizes["visual_ffn"] + len(config.cross_layers) * keys_values
        learns = any(p.requires_grad for p in model.vision.parameters())
        patches = config.vision.num_visual_tokens
        encoder = (6 if learns else 2) * sizes["vision"] * patches
        speaks = any(p.requires_grad for p in model.language.layers.parameters())
        return TrainingFlops(
            (6 if speaks else 4) * sizes["language"], 6 * chain * patches + encoder, 6 * chain * patches
        )


def peak_flops(device: torch.device) -> float:
    """Operations a second that the device could do: of a GPU by its name, of anything else as measured just now."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        for known, peak in PEAKS.items():
            if known in name:
                return peak
    matrix = torch.randn(512, 512, device=device)
    best_s = float("inf")
    for _ in range(8):
        began_s = time.perf_counter()
        product = matrix @ matrix
        float(product[0, 0])  # waits for it
        best_s = min(best_s, time.perf_counter() - began_s)
    return 2 * 512**3 / best_s
