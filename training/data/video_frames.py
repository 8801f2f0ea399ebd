"""Reads the frames of a row from its video or picture. Raises BadRow for files that cannot be read.

Files may be local or in any storage that fsspec supports (s3://, gs://, https://). Times count from the first frame.
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

SEEK_S = 8.0  # longer gaps are skipped by a seek instead of decoding
MAX_PIXELS = 4096 * 2304
NEAR_S = 1e-6


@dataclass(frozen=True, slots=True)
class Frames:
    """N pictures, uint8 [N, S, S, 3], and their times in seconds [N], in ascending order."""

    pictures: npt.NDArray[np.uint8]
    times: npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class FrameReader:
    """Reads the frames of rows.

    Dense rows have `frames_per_second` frames. Other videos have `max_frames` frames, evenly spaced.
    `cache`: folder that keeps decoded frames.
    """

    size: int
    frames_per_second: float
    max_frames: int
    cache: Path | None = None

    def read(self, row: TrainingRow) -> Frames:
        """The frames of a row. Raises BadRow if they cannot be read."""
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
        unfinished = path.with_suffix(f".{id(frames):x}.part")
        with unfinished.open("wb") as file:
            np.savez(file, pictures=frames.pictures, times=frames.times)
        unfinished.rename(path)  # so that readers never see an incomplete file
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
            return self._pictures(container, stream, [0.0], row)
        length_s = _length_s(container, stream)
        if not math.isfinite(length_s) and row.kind != "dense":
            raise BadRow("corrupt video", f"{row.video} does not say how long it is")
        start_s, end_s = row.time_range or (0.0, length_s)
        if row.kind == "dense":
            end_s = max(end_s if row.time_range else 0.0, row.turns[-1].end_s)
            if end_s > length_s + SLACK_S:
                raise BadRow("outside the clip", f"{row.video}: captions until {end_s:g} s of {length_s:g} s")
            first_s = max(start_s - 1 / self.frames_per_second, 0.0)  # so that the first word sees a frame
            num = int((min(end_s, length_s) - first_s) * self.frames_per_second + NEAR_S) + 1
            wanted = [first_s + i / self.frames_per_second for i in range(min(num, self.max_frames))]
        else:
            if start_s > length_s:
                raise BadRow("outside the clip", f"{row.video}: from {start_s:g} s on of {length_s:g} s")
            end_s = min(end_s, length_s)
            wanted = [
                start_s + (i + 0.5) * (end_s - start_s) / self.max_frames for i in range(self.max_frames)
            ]
        return self._pictures(container, stream, wanted, row)

    def _pictures(self, container: Any, stream: Any, wanted: Sequence[float], row: TrainingRow) -> Frames:
        frames = list(_first_at_or_after(container, stream, wanted))
        if not frames:
            raise BadRow("corrupt video", f"{row.video} has no picture at {wanted[0]:g} s")
        pictures = np.stack([to_pixels(frame, self.size) for frame, _ in frames])
        return Frames(pictures, np.array([time_s for _, time_s in frames]))


def _first_at_or_after(container: Any, stream: Any, wanted: Sequence[float]) -> Iterator[tuple[Any, float]]:
    """For each wanted time, the first frame at or after it. Frames are not repeated. Stops at the end of the video."""
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
    """Size and modification time of a file, for the cache key. Raises BadRow if the file is missing or empty."""
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
