"""Pictures of a video, or of a still picture, for one row; what cannot be read is refused by name.

Local files and whatever fsspec reaches (s3://, gs://, https://). Times count from the video's first picture.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

import av
import fsspec
import numpy as np
import numpy.typing as npt
from av.error import FFmpegError

from model.network.pixels import to_pixels
from training.data.bad_row import BadRow
from training.data.training_row import SLACK_S, TrainingRow

SEEK_S = 8.0  # a jump longer than this is made by the container, not by decoding what is in between
MAX_PIXELS = 4096 * 2304
NEAR_S = 1e-6


@dataclass(frozen=True, slots=True)
class Frames:
    """N pictures and when they were taken: uint8 [N, S, S, 3], seconds [N] that never fall."""

    pictures: npt.NDArray[np.uint8]
    times: npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class FrameReader:
    """Reads a row's frames: dense rows at a rate, others `max_frames` evenly; `cache` keeps what was decoded."""

    size: int
    frames_per_second: float
    max_frames: int
    cache: Path | None = None

    def read(self, row: TrainingRow) -> Frames:
        """The frames that a row is about; BadRow when there are none to be had."""
        if row.kind == "text":
            return Frames(np.zeros((0, self.size, self.size, 3), np.uint8), np.zeros(0))
        if self.cache is None:
            return self._decode(row)
        about = (row.video, row.time_range, row.kind, row.turns[-1].end_s if row.kind == "dense" else 0.0)
        key = repr((*about, self.size, self.frames_per_second, self.max_frames, _stamp(row.video)))
        path = self.cache / f"{blake2b(key.encode(), digest_size=16).hexdigest()}.npz"
        if path.is_file():
            kept = np.load(path)
            return Frames(kept["pictures"], kept["times"])
        frames = self._decode(row)
        self.cache.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(f".{id(frames):x}.part")
        with part.open("wb") as file:
            np.savez(file, pictures=frames.pictures, times=frames.times)
        part.rename(path)  # whole, or not there
        return frames

    def _decode(self, row: TrainingRow) -> Frames:
        _stamp(row.video)
        try:
            with fsspec.open(row.video, "rb") as file, av.open(file) as container:
                return self._frames(container, row)
        except (FFmpegError, EOFError) as error:
            raise BadRow(
                "corrupt video", f"{row.video} cannot be decoded: {error.__class__.__name__}"
            ) from error
        except OSError as error:
            raise BadRow("unreadable video", f"{row.video} cannot be read: {error}") from error

    def _frames(self, container: Any, row: TrainingRow) -> Frames:
        if not container.streams.video:
            raise BadRow("corrupt video", f"{row.video} has no video stream")
        stream = container.streams.video[0]
        stream.codec_context.options = {"max_pixels": str(MAX_PIXELS)}
        stream.thread_type = "NONE"
        if row.kind == "image":
            return self._taken(container, stream, [0.0], row)
        length_s = _length_s(container, stream)
        if not math.isfinite(length_s) and row.kind != "dense":
            raise BadRow("corrupt video", f"{row.video} does not say how long it is")
        start_s, end_s = row.time_range or (0.0, length_s)
        if row.kind == "dense":
            end_s = max(end_s if row.time_range else 0.0, row.turns[-1].end_s)
            if end_s > length_s + SLACK_S:
                raise BadRow("outside the clip", f"{row.video}: captions until {end_s:g} s of {length_s:g} s")
            first_s = max(start_s - 1 / self.frames_per_second, 0.0)  # the first word sees something too
            num = int((min(end_s, length_s) - first_s) * self.frames_per_second + NEAR_S) + 1
            wanted = [first_s + i / self.frames_per_second for i in range(min(num, self.max_frames))]
        else:
            if start_s > length_s:
                raise BadRow("outside the clip", f"{row.video}: from {start_s:g} s on of {length_s:g} s")
            end_s = min(end_s, length_s)
            wanted = [
                start_s + (i + 0.5) * (end_s - start_s) / self.max_frames for i in range(self.max_frames)
            ]
        return self._taken(container, stream, wanted, row)

    def _taken(self, container: Any, stream: Any, wanted: Sequence[float], row: TrainingRow) -> Frames:
        taken = list(_first_at_or_after(container, stream, wanted))
        if not taken:
            raise BadRow("corrupt video", f"{row.video} has no picture at {wanted[0]:g} s")
        pictures = np.stack([to_pixels(frame, self.size) for frame, _ in taken])
        return Frames(pictures, np.array([time_s for _, time_s in taken]))


def _first_at_or_after(container: Any, stream: Any, wanted: Sequence[float]) -> Iterator[tuple[Any, float]]:
    """For each wanted time the first picture at or after it, each picture once; where the video ends, so does this."""
    origin_s = float((stream.start_time or 0) * stream.time_base)
    decoded = container.decode(stream)
    at_s = 0.0
    number = 0
    while number < len(wanted):
        if wanted[number] - at_s > SEEK_S:
            container.seek(int((wanted[number] + origin_s) / stream.time_base), stream=stream)
            decoded = container.decode(stream)
        frame = next((f for f in decoded if _time_s(f, origin_s) >= wanted[number] - NEAR_S), None)
        if frame is None:
            return
        at_s = _time_s(frame, origin_s)
        yield frame, at_s
        while number < len(wanted) and wanted[number] <= at_s + NEAR_S:
            number += 1


def _time_s(frame: Any, origin_s: float) -> float:
    return 0.0 if frame.time is None else float(frame.time) - origin_s


def _length_s(container: Any, stream: Any) -> float:
    if stream.duration is not None:
        return float(stream.duration * stream.time_base)
    return float("inf") if container.duration is None else container.duration / av.time_base


def _stamp(video: str) -> tuple[int, str]:
    """What tells a file from a later one of its name; BadRow when it is not there or empty."""
    filesystem, path = fsspec.url_to_fs(video)
    try:
        info = filesystem.info(path)
    except FileNotFoundError as error:
        raise BadRow("missing file", f"{video} is not there") from error
    except OSError as error:
        raise BadRow("unreadable video", f"{video} cannot be reached: {error}") from error
    if info["type"] != "file" or not info["size"]:
        raise BadRow("empty file", f"{video} has no bytes")
    return int(info["size"]), str(info.get("mtime") or info.get("ETag") or info.get("LastModified"))
