"""The vision encoder: raw pixels in, SigLIP's last hidden state out."""

from __future__ import annotations

import torch
from transformers import SiglipVisionConfig, SiglipVisionModel

from model.config import VisionConfig
from model.network.vision import VisionTower

CONFIG = VisionConfig(
    image_size=32,
    patch_size=8,
    hidden_size=24,
    intermediate_size=40,
    num_hidden_layers=2,
    num_attention_heads=3,
)


def test_it_is_hugging_faces_siglip_with_its_normalisation():
    """SigLIP's processor: x / 255, mean 0.5, deviation 0.5."""
    theirs = SiglipVisionModel(
        SiglipVisionConfig(
            image_size=32,
            patch_size=8,
            hidden_size=24,
            intermediate_size=40,
            num_hidden_layers=2,
            num_attention_heads=3,
        )
    ).eval()
    tower = VisionTower(CONFIG).eval()
    tower.encoder.load_state_dict({n: t for n, t in theirs.state_dict().items() if "head." not in n})
    pixels = torch.randint(0, 256, (3, 32, 32, 3), dtype=torch.uint8)
    normal = (pixels.permute(0, 3, 1, 2) / 255 - 0.5) / 0.5
    with torch.no_grad():
        got, wanted = tower(pixels), theirs(pixel_values=normal).last_hidden_state
    assert got.shape == (3, CONFIG.num_visual_tokens, CONFIG.hidden_size)
    torch.testing.assert_close(got, wanted, atol=1e-5, rtol=1e-5)


def test_pictures_do_not_touch_each_other():
    tower = VisionTower(CONFIG).eval()
    pixels = torch.randint(0, 256, (3, 32, 32, 3), dtype=torch.uint8)
    with torch.no_grad():
        torch.testing.assert_close(tower(pixels)[1:2], tower(pixels[1:2]), atol=1e-5, rtol=1e-5)


def test_it_can_be_trained():
    tower = VisionTower(CONFIG)
    tower(torch.zeros(1, 32, 32, 3, dtype=torch.uint8)).square().sum().backward()
    assert all(parameter.grad is not None for parameter in tower.parameters())


def test_half_precision_weights_take_the_same_pixels():
    tower = VisionTower(CONFIG).bfloat16()
    assert tower(torch.zeros(1, 32, 32, 3, dtype=torch.uint8)).dtype == torch.bfloat16
