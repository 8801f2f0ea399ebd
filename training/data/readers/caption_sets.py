"""Readers of captioned videos, each in its set's own layout: what happens when, as dense rows.

The caption is the answer, and the instruction is the same everywhere: `training/dense/dense_instructions.py` writes
better ones. Captions that cannot be used are named and counted one by one; the rest of their video is kept.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from training.data.bad_row import BadRow, BadRowCounter
from training.data.json_fields import as_list, as_mapping, as_number, as_text
from training.data.readers.json_file import read_json
from training.data.training_row import MAX_TURNS, SLACK_S, TrainingRow, Turn

INSTRUCTION = "Tell me what happens."
LONGEST_NARRATION_S = 10.0  # Ego4D says when something begins, not how long it lasts

Entry = tuple[str, Callable[[], "Captioned"]]  # where it stands, and what to make of it (may raise BadRow)


@dataclass(frozen=True, slots=True, kw_only=True)
class Captioned:
    """A video's captions as they are found, unchecked. captions: (start_s, end_s, text) each."""

    video: str
    duration_s: object  # seconds, or None where the set does not tell
    captions: Sequence[tuple[object, object, object]]


def ego4d(path: Path) -> Iterator[Entry]:
    """Ego4D: `narration.json` (two passes a video) or `all_narrations_redacted.json` (one list a video)."""
    data = as_mapping(str(path), read_json(path))
    videos = as_mapping("videos", data.get("videos", data))
    for uid, video in _entries(videos):
        for name, narrations in _passes(video):
            yield f"{path}:{uid}{name}", lambda u=uid, n=narrations: _ego4d(u, n)


def _passes(video: object) -> Iterator[tuple[str, object]]:
    """Two people narrated most videos: they say the same twice, so each makes a row of its own."""
    fields = video if isinstance(video, Mapping) else {"narrations": video}
    passes = [name for name in ("narration_pass_1", "narration_pass_2") if name in fields]
    for name in passes:
        found = fields[name]
        yield f":{name}", found.get("narrations") if isinstance(found, Mapping) else found
    if not passes:
        yield "", fields.get("narrations", [])


def _ego4d(uid: str, narrations: object) -> Captioned:
    values = [n if isinstance(n, Mapping) else {} for n in as_list("narrations", narrations)]
    begun = [(n.get("timestamp_sec", n.get("time")), n.get("narration_text", n.get("text"))) for n in values]
    times = sorted(time_s for time_s, _ in begun if isinstance(time_s, int | float))
    captions = [(time_s, _next_s(times, time_s), _narration(text)) for time_s, text in begun]
    return Captioned(video=f"{uid}.mp4", duration_s=None, captions=captions)


def _next_s(times: Sequence[float], time_s: object) -> object:
    """When a narration ends: when the next begins. The last one soon: the file does not say how long the video is."""
    if not isinstance(time_s, int | float):
        return time_s
    later = bisect_right(times, time_s)
    return min(times[later], time_s + LONGEST_NARRATION_S) if later < len(times) else time_s + SLACK_S


def _narration(text: object) -> object:
    """`#C C picks up a cup` is about the one who wears the camera, `#O man X waves` about somebody else."""
    if not isinstance(text, str):
        return text
    text = re.sub(r"#unsure\b", "something", text, flags=re.IGNORECASE)
    text = re.sub(r"#\w+", "", text)
    text = re.sub(r"\bC\b", "the camera wearer", text)
    text = " ".join(text.split())
    return text[:1].upper() + text[1:]


def activitynet(path: Path) -> Iterator[Entry]:
    """ActivityNet Captions: `train.json`, `val_1.json`, `val_2.json`."""
    for name, value in _entries(as_mapping(str(path), read_json(path))):
        yield f"{path}:{name}", lambda n=name, v=value: _activitynet(n, v)


def _activitynet(name: str, value: object) -> Captioned:
    video = as_mapping("video", value)
    times = [as_list("timestamps", pair) for pair in as_list("timestamps", video.get("timestamps"))]
    sentences = as_list("sentences", video.get("sentences"))
    if len(times) != len(sentences) or any(len(pair) != 2 for pair in times):
        raise BadRow(
            "wrong type", f"got {len(times)} timestamps and {len(sentences)} sentences, wanted a pair each"
        )
    captions = [(pair[0], pair[1], text) for pair, text in zip(times, sentences, strict=True)]
    return Captioned(video=f"{name}.mp4", duration_s=video.get("duration"), captions=captions)


def coin(path: Path) -> Iterator[Entry]:
    """COIN: `COIN.json`."""
    return _database(path, "annotation", "label")


def youcook2(path: Path) -> Iterator[Entry]:
    """YouCook2: `youcookii_annotations_trainval.json`."""
    return _database(path, "annotations", "sentence")


def _database(path: Path, segments: str, text: str) -> Iterator[Entry]:
    """ActivityNet's first layout, which COIN and YouCook2 took over."""
    data = as_mapping(str(path), read_json(path))
    for name, value in _entries(as_mapping("database", data.get("database"))):
        yield f"{path}:{name}", lambda n=name, v=value: _segments(n, as_mapping(n, v), segments, text)


def _segments(name: str, video: Mapping[str, Any], segments: str, text: str) -> Captioned:
    captions: list[tuple[object, object, object]] = []
    for number, value in enumerate(as_list(segments, video.get(segments))):
        one = as_mapping(f"{segments}[{number}]", value)
        times = as_list("segment", one.get("segment"))
        captions.append(
            (times[0], times[1], one.get(text)) if len(times) == 2 else (None, None, one.get(text))
        )
    return Captioned(video=f"{name}.mp4", duration_s=video.get("duration"), captions=captions)


def vript(path: Path) -> Iterator[Entry]:
    """Vript: a folder with `*_caption.json` and, of the same videos, `*_cut_meta.json`, at any depth, as unpacked."""
    cuts = {file.name.removesuffix("_cut_meta.json"): file for file in path.rglob("*_cut_meta.json")}
    files = sorted(path.rglob("*_caption.json"))
    if not files:
        raise FileNotFoundError(
            f"{path}: no *_caption.json in it; wanted the folder in which Vript was unpacked"
        )
    for file in files:
        name = file.name.removesuffix("_caption.json")
        yield str(file), lambda n=name, f=file: _vript(n, f, cuts.get(n))


def _vript(name: str, file: Path, cut_file: Path | None) -> Captioned:
    if cut_file is None:
        raise BadRow("no times", f"{name}_cut_meta.json, which tells when each scene is, is not there")
    scenes = as_mapping("data", as_mapping("file", _json_of_many(file)).get("data"))
    cuts = as_mapping("cut_meta", _json_of_many(cut_file))
    times: dict[str, tuple[object, object]] = {}
    for value in as_list("clips", cuts.get("clips")):
        clip = as_mapping("clip", value)
        start, end = (_seconds(clip.get(key, clip.get(f"{key}_time"))) for key in ("start", "end"))
        times[Path(as_text("clip_id", clip.get("clip_id"))).stem] = (start, end)
    captions: list[tuple[object, object, object]] = []
    for scene, value in scenes.items():
        caption = as_mapping(f"{scene}.caption", as_mapping(scene, value).get("caption"))
        captions.append((*times.get(scene, (None, None)), caption.get("content")))
    return Captioned(video=f"{name}.mp4", duration_s=None, captions=captions)


def _json_of_many(file: Path) -> object:
    """One damaged file among thousands is a bad row, not the end."""
    try:
        return read_json(file)
    except ValueError as error:
        raise BadRow("no JSON", str(error)) from error


def _seconds(time: object) -> object:
    """Seconds of a number, or of a text like 00:01:02.500; anything else as it is."""
    if isinstance(time, str) and re.fullmatch(r"(\d+:){0,2}\d+(\.\d+)?", time):
        return sum(float(part) * 60**power for power, part in enumerate(reversed(time.split(":"))))
    return time


def live_world(path: Path) -> Iterator[Entry]:
    """The live world: `captions.json` (`training/live_world/write_clips.py`)."""
    for name, value in _entries(as_mapping(str(path), read_json(path))):
        yield f"{path}:{name}", lambda n=name, v=value: _live_world(n, as_mapping(n, v))


def _live_world(name: str, clip: Mapping[str, Any]) -> Captioned:
    values = [as_mapping("caption", value) for value in as_list("captions", clip.get("captions"))]
    captions = [(value.get("start_s"), value.get("end_s"), value.get("caption")) for value in values]
    duration_s = as_mapping("world", clip.get("world", {})).get("duration_s")
    return Captioned(video=name, duration_s=duration_s, captions=captions)


def _entries(values: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """An object's parts, and those which the file has a second time under the same name."""
    yield from values.items()
    yield from getattr(values, "again", ())


def captioned_rows(source: str, entries: Iterator[Entry], bad: BadRowCounter) -> Iterator[TrainingRow]:
    """A dense row of each video's good captions. `bad` counts captions, and videos of which nothing can be read."""
    seen: set[str] = set()
    for where, make in entries:
        try:
            found = make()
            if where in seen:
                raise BadRow("duplicate id", f"{where} was there before")
            if not 0 < len(found.captions) <= MAX_TURNS:
                reason = "too many captions" if found.captions else "no captions"
                raise BadRow(reason, f"got {len(found.captions)}, wanted 1 to {MAX_TURNS}")
            seconds = None if found.duration_s is None else as_number("duration", found.duration_s)
        except BadRow as error:
            bad.skip(where, error)
            continue
        seen.add(where)
        time_range = None if seconds is None else (0.0, seconds)
        turns = list(_good_turns(where, found, time_range, bad))
        if turns:
            turns.sort(key=lambda turn: turn.start_s)
            yield TrainingRow(
                video=found.video, time_range=time_range, turns=tuple(turns), kind="dense", source=source
            )


def _good_turns(
    where: str, found: Captioned, time_range: tuple[float, float] | None, bad: BadRowCounter
) -> Iterator[Turn]:
    for number, (start, end, text) in enumerate(found.captions):
        try:
            turn = Turn(
                start_s=as_number("start", start),
                end_s=as_number("end", end),
                instruction=INSTRUCTION,
                answer=as_text("caption", text).strip(),
            )
            # A row of this caption alone is checked as every row is.
            TrainingRow(video=found.video, time_range=time_range, turns=(turn,), kind="dense", source="")
        except BadRow as error:
            bad.skip(f"{where}: caption {number}", error)
            continue
        bad.good()
        yield turn
