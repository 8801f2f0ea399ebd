"""Reads the captions of live-world clips."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from training.data.bad_row import BadRowCounter
from training.data.json_fields import as_list, as_mapping
from training.data.readers.captioned_video import CaptionedVideo, VideoEntry, captioned_rows
from training.data.readers.json_file import all_entries, read_json
from training.data.training_row import TrainingRow
from training.live_world.world import TEST_SEEDS


def read_live_world(path: Path, source: str, bad: BadRowCounter) -> Iterator[TrainingRow]:
    """Rows of the `captions.json` that `training/live_world/write_clips.py` writes."""
    return captioned_rows(source, _videos(path), bad)


def _videos(path: Path) -> Iterator[VideoEntry]:
    for name, value in all_entries(as_mapping(str(path), read_json(path))):
        yield f"{path}:{name}", lambda n=name, v=value: _captioned_video(n, as_mapping(n, v))


def _captioned_video(name: str, clip: Mapping[str, Any]) -> CaptionedVideo:
    values = [as_mapping("caption", value) for value in as_list("captions", clip.get("captions"))]
    captions = [(value.get("start_s"), value.get("end_s"), value.get("caption")) for value in values]
    world = as_mapping("world", clip.get("world", {}))
    if world.get("seed") in TEST_SEEDS:
        raise ValueError(f"{name} is held out for tests: its seed is {world['seed']}; train on other clips")
    duration_s = world.get("duration_s")
    return CaptionedVideo(video=name, duration_s=duration_s, captions=captions)
