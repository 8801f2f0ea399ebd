"""Read live-world clips: frames at a fixed rate, and the true labels of each frame."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np
import numpy.typing as npt

from model.network.pixels import to_pixels
from training.live_world.questions import Question
from training.live_world.world import COLOURS, HAPPENINGS, PLACES, TEST_SEEDS, THINGS, World


@dataclass(frozen=True, slots=True, kw_only=True)
class Clip:
    """A video file and the truth about it."""

    path: Path
    world: World


def find_clips(folder: Path) -> list[Clip]:
    """The clips of a folder that `training/live_world/write_clips.py` wrote; FileNotFoundError if it has none."""
    captions = folder / "captions.json"
    if not captions.is_file():
        raise FileNotFoundError(f"{folder} holds no live-world clips: {captions} is missing")
    rows = json.loads(captions.read_text())
    return [Clip(path=folder / name, world=World.from_json(rows[name]["world"])) for name in sorted(rows)]


def training_clips(folders: Sequence[Path]) -> list[Clip]:
    """The clips of all folders; ValueError when some are held out for tests."""
    clips = [clip for folder in folders for clip in find_clips(folder)]
    if any(clip.world.seed in TEST_SEEDS for clip in clips):
        raise ValueError(f"clips: seeds from {TEST_SEEDS.start} on are held out for tests; train on others")
    return clips


def question_of(row: dict[str, Any]) -> Question:
    """The question of a row of a clip folder's `questions.json`."""
    return Question(kind=row["kind"], **row["about"])


def read_frames(
    path: Path, frames_per_second: float, size: int, phase_s: float = 0.0
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.uint8]]:
    """Decode a clip and take the first frame at or after `phase_s`, `phase_s` + 1/frames_per_second, and so on.

    Returns capture times [N] in seconds and pictures [N, size, size, 3].
    """
    times: list[float] = []
    pictures: list[npt.NDArray[np.uint8]] = []
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.thread_type = "NONE"
        for frame in container.decode(stream):
            due_s = phase_s + len(times) / frames_per_second
            if frame.pts is not None and frame.time >= due_s - 1e-6:
                times.append(frame.time)
                pictures.append(to_pixels(frame, size))
    return np.array(times), np.stack(pictures)


def phase_of(number: int) -> float:
    """Sampling phase of a data set's clip, in seconds (the clips have 10 frames a second)."""
    return 0.1 * (number % 2)


def frame_times(number: int, num: int, frames_per_second: float) -> npt.NDArray[np.float64]:
    """Capture times [num] of the frames that `clip_frames.decode_all` takes from a clip."""
    return phase_of(number) + np.arange(num) / frames_per_second


def place_labels(world: World, time_s: float) -> npt.NDArray[np.int64]:
    """Labels of the nine places at a time: [9, 3] class numbers (thing, colour, happening); 0 = none."""
    state = world.state(time_s)
    labels = np.zeros((len(PLACES), 3), dtype=np.int64)
    event = state.event
    visible = [*state.things, *([event.thing] if event is not None and event.happening == "leaves" else [])]
    for thing in visible:
        happening = (
            1 + HAPPENINGS.index(event.happening)
            if event is not None and event.thing.name == thing.name
            else 0
        )
        labels[thing.place] = 1 + THINGS.index(thing.name), 1 + list(COLOURS).index(thing.colour), happening
    return labels


def clip_labels(clip: Clip, times: npt.NDArray[np.float64]) -> npt.NDArray[np.int8]:
    """`place_labels` at times [N]: [N, 9, 3]."""
    return np.stack([place_labels(clip.world, float(time_s)) for time_s in times]).astype(np.int8)


def dataset_labels(clips: Sequence[Clip], num_frames: int, frames_per_second: float) -> npt.NDArray[np.int8]:
    """`place_labels` of the frames that `clip_frames.decode_all` takes: [clips, N, 9, 3]."""
    return np.stack(
        [clip_labels(clip, frame_times(i, num_frames, frames_per_second)) for i, clip in enumerate(clips)]
    )
