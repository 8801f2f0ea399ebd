"""The vision encoder: transformers' SigLIP, from raw pixels to visual tokens.

Letters: N pictures, S pixels along a side, P visual tokens a picture, Dv the encoder's width.
"""

from __future__ import annotations

from dataclasses import asdict

import torch
from torch import Tensor, nn
from transformers import SiglipVisionConfig, SiglipVisionModel

from model.config import VisionConfig


class VisionTower(nn.Module):
    """SigLIP without its pooling head. Its parameters are `encoder.` and transformers' own names."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = SiglipVisionModel(SiglipVisionConfig(**asdict(config), vision_use_head=False))

    def forward(self, pixels: Tensor) -> Tensor:
        """uint8 pixels [N, S, S, 3] (RGB, as `to_pixels` gives them) -> visual tokens [N, P, Dv]."""
        dtype = next(self.encoder.parameters()).dtype
        scaled = pixels.permute(0, 3, 1, 2).to(torch.float32) / 127.5 - 1.0
        return self.encoder(pixel_values=scaled.to(dtype)).last_hidden_state

    def fill_buffers(self, device: torch.device) -> None:
        """Make the constants that no checkpoint holds, after the module was built without memory."""
        places = torch.arange(self.config.num_visual_tokens, device=device).expand((1, -1))
        self.encoder.embeddings.register_buffer("position_ids", places, persistent=False)
