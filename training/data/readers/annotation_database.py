"""The layout that COIN and YouCook2 took from ActivityNet: `{"database": {video: {"annotations": [...]}}}`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from training.data.json_fields import as_list, as_mapping
from training.data.readers.captioned_video import CaptionedVideo, VideoEntry
from training.data.readers.json_file import all_entries, read_json


def database_videos(path: Path, segments: str, text: str) -> Iterator[VideoEntry]:
    """All videos of the file; `segments` and `text` are the names of the fields that hold the captions."""
    data = as_mapping(str(path), read_json(path))
    for name, value in all_entries(as_mapping("database", data.get("database"))):
        yield f"{path}:{name}", lambda n=name, v=value: _segments(n, as_mapping(n, v), segments, text)


def _segments(name: str, video: Mapping[str, Any], segments: str, text: str) -> CaptionedVideo:
    captions: list[tuple[object, object, object]] = []
    for number, value in enumerate(as_list(segments, video.get(segments))):
        one = as_mapping(f"{segments}[{number}]", value)
        times = as_list("segment", one.get("segment"))
        captions.append(
            (times[0], times[1], one.get(text)) if len(times) == 2 else (None, None, one.get(text))
        )
    return CaptionedVideo(video=f"{name}.mp4", duration_s=video.get("duration"), captions=captions)
