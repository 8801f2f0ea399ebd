"""Reads Ego4D's narrations.

Ego4D says when an action begins, not how long it lasts: a narration ends when the next one begins.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from training.data.bad_row import BadRowCounter
from training.data.json_fields import as_list, as_mapping
from training.data.readers.captioned_video import CaptionedVideo, VideoEntry, captioned_rows
from training.data.readers.json_file import all_entries, read_json
from training.data.training_row import SLACK_S, TrainingRow

LONGEST_NARRATION_S = 10.0


def read_ego4d(path: Path, source: str, bad: BadRowCounter) -> Iterator[TrainingRow]:
    """Rows of `narration.json` (two passes of a video) or `all_narrations_redacted.json` (one list of a video)."""
    return captioned_rows(source, _videos(path), bad)


def _videos(path: Path) -> Iterator[VideoEntry]:
    data = as_mapping(str(path), read_json(path))
    videos = as_mapping("videos", data.get("videos", data))
    for uid, video in all_entries(videos):
        for name, narrations in _passes(video):
            yield f"{path}:{uid}{name}", lambda u=uid, n=narrations: _captioned_video(u, n)


def _passes(video: object) -> Iterator[tuple[str, object]]:
    """Most videos have two narrators who describe the same actions; each pass becomes a row."""
    fields = video if isinstance(video, Mapping) else {"narrations": video}
    passes = [name for name in ("narration_pass_1", "narration_pass_2") if name in fields]
    for name in passes:
        found = fields[name]
        yield f":{name}", found.get("narrations") if isinstance(found, Mapping) else found
    if not passes:
        yield "", fields.get("narrations", [])


def _captioned_video(uid: str, narrations: object) -> CaptionedVideo:
    values = [n if isinstance(n, Mapping) else {} for n in as_list("narrations", narrations)]
    started = [
        (n.get("timestamp_sec", n.get("time")), n.get("narration_text", n.get("text"))) for n in values
    ]
    times = sorted(time_s for time_s, _ in started if isinstance(time_s, int | float))
    captions = [(time_s, _end_s(times, time_s), _sentence(text)) for time_s, text in started]
    return CaptionedVideo(video=f"{uid}.mp4", duration_s=None, captions=captions)


def _end_s(times: Sequence[float], time_s: object) -> object:
    """When a narration ends: when the next one begins, or soon for the last one (the file has no video length)."""
    if not isinstance(time_s, int | float):
        return time_s
    later = bisect_right(times, time_s)
    return min(times[later], time_s + LONGEST_NARRATION_S) if later < len(times) else time_s + SLACK_S


def _sentence(text: object) -> object:
    """The narration as a sentence. `#C C ...` is about the camera wearer, `#O man X ...` about another person."""
    if not isinstance(text, str):
        return text
    text = re.sub(r"#unsure\b", "something", text, flags=re.IGNORECASE)
    text = re.sub(r"#\w+", "", text)
    text = re.sub(r"\bC\b", "the camera wearer", text)
    text = " ".join(text.split())
    return text[:1].upper() + text[1:]
