"""All frames of live-world clips in one memory-mapped file, as pictures or as the vision encoder's output.

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
from training.live_world.clips import Clip, phase_of, read_frames

if TYPE_CHECKING:  # tasks that only make micro-batches need not load torch
    from model.network.vision import VisionTower


def frame_file(clips: list[Clip], config: StreamChatConfig, vision: VisionTower | None, cache: Path) -> Path:
    """File of the clips' pictures, or with `vision` of the encoder's output for them. It is written only once."""
    size, rate = config.vision.image_size, config.frames_per_second
    about = repr(([(str(c.path.resolve()), c.world.seed, c.world.index) for c in clips], size, rate))
    key = blake2b(about.encode(), digest_size=8)
    cache.mkdir(parents=True, exist_ok=True)
    pictures = cache / f"pictures-{key.hexdigest()}.npy"
    frames = decode_all(clips, rate, size, pictures)
    if vision is None:
        return pictures
    for parameter in vision.parameters():
        key.update(parameter.detach().cpu().float().numpy().tobytes())
    features = cache / f"features-{key.hexdigest()}.npy"
    if not features.is_file():
        encode_all(vision, frames, features)
    return features


def decode_all(clips: list[Clip], frames_per_second: float, size: int, out: Path) -> npt.NDArray[np.uint8]:
    """Decode all clips into a memory-mapped file of pictures [clips, N, size, size, 3], unless the file exists.

    The sampling phase alternates between clips, so that the data set has frames at all times of a clip. Shows progress
    on stderr. Raises ValueError when the file exists and does not fit the clips.
    """
    num = int(min(c.world.duration_s for c in clips) * frames_per_second)
    shape = (len(clips), num, size, size, 3)
    if out.is_file():
        frames = np.lib.format.open_memmap(out, mode="r")
        if frames.shape != shape:
            raise ValueError(
                f"{out}: got frames of shape {frames.shape}, wanted {shape}: the file is of other clips"
            )
        return frames
    partial = out.with_suffix(f".{os.getpid()}.part.npy")  # another process may write the same file
    frames = np.lib.format.open_memmap(partial, mode="w+", dtype=np.uint8, shape=shape)
    for number, clip in enumerate(clips):
        _, pictures = read_frames(clip.path, frames_per_second, size, phase_of(number))
        pictures = pictures[:num]
        frames[number, : len(pictures)] = pictures
        frames[number, len(pictures) :] = pictures[-1:]
        print(f"\rdecoded {number + 1}/{len(clips)} clips", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    frames.flush()
    partial.rename(out)
    return np.lib.format.open_memmap(out, mode="r")


def encode_all(vision: VisionTower, frames: npt.NDArray[np.uint8], out: Path) -> None:
    """Write the encoder's output [C, N, P, Dv] for pictures [C, N, S, S, 3]."""
    import torch

    shape = (*frames.shape[:2], vision.config.num_visual_tokens, vision.config.hidden_size)
    partial = out.with_suffix(f".{os.getpid()}.part.npy")  # another process may write the same file
    features = np.lib.format.open_memmap(partial, mode="w+", dtype=np.float32, shape=shape)
    device = next(vision.parameters()).device
    for clip in range(len(frames)):
        with torch.inference_mode():
            output = vision(torch.from_numpy(frames[clip].copy()).to(device))
        features[clip] = output.float().cpu().numpy()
        if clip % 10 == 0 or clip + 1 == len(frames):
            print(f"\rencoded {clip + 1}/{len(frames)} clips", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    features.flush()
    partial.rename(out)
