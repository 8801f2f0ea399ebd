"""The encoder service: the same tokens as the model's own tower, whatever is batched with what."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from model.folder import load_model
from services.vision_encoder import VisionEncoder


@pytest.fixture(scope="module")
def encoder(random_folder: Path) -> VisionEncoder:
    return VisionEncoder(random_folder)


def pictures(num: int) -> list[bytes]:
    return [
        np.random.default_rng(i).integers(0, 256, (96, 96, 3), dtype=np.uint8).tobytes() for i in range(num)
    ]


async def test_tokens_are_those_of_the_model(encoder: VisionEncoder, random_folder: Path) -> None:
    got = await encoder.encode(pictures(3))
    pixels = torch.frombuffer(bytearray(b"".join(pictures(3))), dtype=torch.uint8).view(3, 96, 96, 3)
    with torch.inference_mode():
        wanted = load_model(random_folder).vision(pixels)
    for one, right in zip(got, wanted, strict=True):
        assert (one.shape, one.dtype) == ((9, 160), "float32")
        values = np.frombuffer(one.data, dtype=np.float32).reshape(one.shape)
        np.testing.assert_allclose(values, right.numpy(), atol=1e-5)


async def test_nothing_gives_nothing(encoder: VisionEncoder) -> None:
    assert await encoder.encode([]) == []


async def test_a_picture_of_the_wrong_size_is_named(encoder: VisionEncoder) -> None:
    with pytest.raises(ValueError, match="wanted 27648"):
        await encoder.encode([b"short"])
