"""Reads Vript: captions from `*_caption.json`, and times from `*_cut_meta.json`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from training.data.bad_row import BadRow, BadRowCounter
from training.data.json_fields import as_list, as_mapping, as_text
from training.data.readers.captioned_video import CaptionedVideo, VideoEntry, captioned_rows
from training.data.readers.json_file import read_json
from training.data.training_row import TrainingRow


def read_vript(path: Path, source: str, bad: BadRowCounter) -> Iterator[TrainingRow]:
    """Rows of the folder in which Vript was unpacked; its files may lie at any depth."""
    return captioned_rows(source, _videos(path), bad)


def _videos(path: Path) -> Iterator[VideoEntry]:
    cuts = {file.name.removesuffix("_cut_meta.json"): file for file in path.rglob("*_cut_meta.json")}
    files = sorted(path.rglob("*_caption.json"))
    if not files:
        raise FileNotFoundError(
            f"{path}: no *_caption.json in it; wanted the folder in which Vript was unpacked"
        )
    for file in files:
        name = file.name.removesuffix("_caption.json")
        yield str(file), lambda n=name, f=file: _captioned_video(n, f, cuts.get(n))


def _captioned_video(name: str, file: Path, cut_file: Path | None) -> CaptionedVideo:
    if cut_file is None:
        raise BadRow("no times", f"{name}_cut_meta.json, which holds the times of the scenes, is missing")
    scenes = as_mapping("data", as_mapping("file", _read_one_json(file)).get("data"))
    cuts = as_mapping("cut_meta", _read_one_json(cut_file))
    times: dict[str, tuple[object, object]] = {}
    for value in as_list("clips", cuts.get("clips")):
        clip = as_mapping("clip", value)
        start, end = (_seconds(clip.get(key, clip.get(f"{key}_time"))) for key in ("start", "end"))
        times[Path(as_text("clip_id", clip.get("clip_id"))).stem] = (start, end)
    captions: list[tuple[object, object, object]] = []
    for scene, value in scenes.items():
        caption = as_mapping(f"{scene}.caption", as_mapping(scene, value).get("caption"))
        captions.append((*times.get(scene, (None, None)), caption.get("content")))
    return CaptionedVideo(video=f"{name}.mp4", duration_s=None, captions=captions)


def _read_one_json(file: Path) -> object:
    """A damaged file among thousands is a bad row and does not stop the run."""
    try:
        return read_json(file)
    except ValueError as error:
        raise BadRow("no JSON", str(error)) from error


def _seconds(time: object) -> object:
    """Seconds of a text such as 00:01:02.500; any other value is returned unchanged."""
    if isinstance(time, str) and re.fullmatch(r"(\d+:){0,2}\d+(\.\d+)?", time):
        return sum(float(part) * 60**power for power, part in enumerate(reversed(time.split(":"))))
    return time
