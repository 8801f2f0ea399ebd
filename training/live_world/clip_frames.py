"""All frames of live-world clips in one mapped file: as pictures, or as the vision encoder's output.

Letters: C clips, N frames of a clip, S pixels along a side, P visual tokens, Dv the encoder's width.
"""

from __future__ import annotations

import os
import sys
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from model.config import StreamChatConfig
from training.live_world.clips import Clip, read_all

if TYPE_CHECKING:  # tasks that only make micro-batches need not load torch
    from model.network.vision import VisionTower


def seen_file(clips: list[Clip], config: StreamChatConfig, vision: VisionTower | None, cache: Path) -> Path:
    """All pictures of the clips, or with `vision` the encoder's output for them, in a file to map; made once."""
    size, rate = config.vision.image_size, config.frames_per_second
    about = repr(([(str(c.path.resolve()), c.world.seed, c.world.index) for c in clips], size, rate))
    key = blake2b(about.encode(), digest_size=8)
    cache.mkdir(parents=True, exist_ok=True)
    pictures = cache / f"pictures-{key.hexdigest()}.npy"
    frames = read_all(clips, rate, size, pictures)
    if vision is None:
        return pictures
    for parameter in vision.parameters():
        key.update(parameter.detach().cpu().float().numpy().tobytes())
    features = cache / f"features-{key.hexdigest()}.npy"
    if not features.is_file():
        encode_all(vision, frames, features)
    return features


def encode_all(vision: VisionTower, frames: npt.NDArray[np.uint8], out: Path) -> None:
    """Write the encoder's output [C, N, P, Dv] for pictures [C, N, S, S, 3]."""
    import torch

    shape = (*frames.shape[:2], vision.config.num_visual_tokens, vision.config.hidden_size)
    part = out.with_suffix(f".{os.getpid()}.part.npy")  # others may make the same
    features = np.lib.format.open_memmap(part, mode="w+", dtype=np.float32, shape=shape)
    device = next(vision.parameters()).device
    for clip in range(len(frames)):
        with torch.inference_mode():
            seen = vision(torch.from_numpy(frames[clip].copy()).to(device))
        features[clip] = seen.float().cpu().numpy()
        if clip % 10 == 0 or clip + 1 == len(frames):
            print(f"\rencoded {clip + 1}/{len(frames)} clips", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    features.flush()
    part.rename(out)
