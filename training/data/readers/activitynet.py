"""Reads ActivityNet Captions."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from training.data.bad_row import BadRow, BadRowCounter
from training.data.json_fields import as_list, as_mapping
from training.data.readers.captioned_video import CaptionedVideo, VideoEntry, captioned_rows
from training.data.readers.json_file import all_entries, read_json
from training.data.training_row import TrainingRow


def read_activitynet(path: Path, source: str, bad: BadRowCounter) -> Iterator[TrainingRow]:
    """Rows of `train.json`, `val_1.json` or `val_2.json`."""
    return captioned_rows(source, _videos(path), bad)


def _videos(path: Path) -> Iterator[VideoEntry]:
    for name, value in all_entries(as_mapping(str(path), read_json(path))):
        yield f"{path}:{name}", lambda n=name, v=value: _captioned_video(n, v)


def _captioned_video(name: str, value: object) -> CaptionedVideo:
    video = as_mapping("video", value)
    times = [as_list("timestamps", pair) for pair in as_list("timestamps", video.get("timestamps"))]
    sentences = as_list("sentences", video.get("sentences"))
    if len(times) != len(sentences) or any(len(pair) != 2 for pair in times):
        raise BadRow(
            "wrong type", f"got {len(times)} timestamps and {len(sentences)} sentences, wanted a pair each"
        )
    captions = [(pair[0], pair[1], text) for pair, text in zip(times, sentences, strict=True)]
    return CaptionedVideo(video=f"{name}.mp4", duration_s=video.get("duration"), captions=captions)
