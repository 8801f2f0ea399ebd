"""An engine with cameras whose frames have arrived. What several test files need, and no test."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from model.engine.engine import Engine
from model.network.streamchat import StreamChat

CLOSE: dict[str, Any] = {"atol": 3e-5, "rtol": 1e-4}
PROMPT = [5, 9, 3, 60]


def features(model: StreamChat, seed: int) -> Tensor:
    vision = model.config.vision
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(vision.num_visual_tokens, vision.hidden_size, generator=generator)


def watch(engine: Engine, camera: str, first: int, last: int) -> None:
    """Frames number `first` to `last` of a camera arrive, five a second."""
    base = sum(camera.encode())
    for number in range(first, last + 1):
        engine.add_frame(camera, f"{number}", number / 5, features(engine.model, base + number))


def with_cameras(model: StreamChat, *cameras: str, num_frames: int = 7, **settings: Any) -> Engine:
    engine = Engine(model, **settings)
    for camera in cameras:
        engine.add_camera(camera)
        watch(engine, camera, 0, num_frames - 1)
    return engine
