"""Reads the frames of a row from its video or picture. Raises BadRow for files that cannot be read.

Files may be local or in any storage that fsspec supports (s3://, gs://, https://). Times count from the first frame.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import av
import fsspec
import numpy as np
from av.error import FFmpegError

from model.network.pixels import to_pixels
from training.data.bad_row import BadRow
from training.data.frames.frame_cache import FrameCache, Frames
from training.data.training_row import SLACK_S, TrainingRow, frame_number
from training.live_world.world import HELD_OUT

SEEK_S = 8.0  # longer gaps are skipped by a seek instead of decoding
MAX_VIDEO_PIXELS = 4096 * 2304
MAX_PICTURE_PIXELS = 12_000 * 12_000
CHUNK = 64  # frames of a dense row's video that are decoded and cached together
NEAR_S = 1e-6


@dataclass(frozen=True, slots=True, kw_only=True)
class FrameReader:
    """Reads the frames of rows.

    Dense rows have `frames_per_second` frames, at times that all rows of a video share, and at most `2 * max_frames`
    of them (`training_row.cut_windows`). Other videos have `max_frames` frames, evenly spaced.
    `cache` keeps decoded frames. `for_training`: refuse videos that are held out for tests.
    """

    size: int
    frames_per_second: float
    max_frames: int
    cache: FrameCache | None = None
    for_training: bool = False

    def read(self, row: TrainingRow) -> Frames:
        """The frames of a row. Raises BadRow if they cannot be read."""
        if row.kind == "text":
            return Frames(np.zeros((0, self.size, self.size, 3), np.uint8), np.zeros(0))
        if row.kind == "dense":
            return self._dense(row)
        if row.kind == "interleaved":
            pictures = [self._picture(path).pictures for path in row.pictures]
            return Frames(np.concatenate(pictures), np.arange(float(len(pictures))))
        return self._picture(row.video) if row.kind == "image" else self._evenly(row)

    def _dense(self, row: TrainingRow) -> Frames:
        """The frames from the row's start to the end of its last answer, and the one before them."""
        fps = self.frames_per_second
        start_s = row.time_range[0] if row.time_range else 0.0
        end_s = max(turn.end_s for turn in row.turns)
        last = frame_number(end_s, fps)
        first = max(frame_number(start_s, fps) - 1, last - 2 * self.max_frames + 1, 0)
        between = (first / fps - NEAR_S, end_s + NEAR_S)
        parts = [self._numbered(row.video, numbers, between) for numbers in self._chunks(first, last)]
        if end_s > parts[0].length_s + SLACK_S:
            length_s = parts[0].length_s
            raise BadRow("outside the clip", f"{row.video}: captions until {end_s:g} s of {length_s:g} s")
        times = np.concatenate([part.times for part in parts])
        # A picture at or after a wanted time may come after the end, as may all pictures of a very short row.
        end = max(int(np.searchsorted(times, between[1], side="right")), 1)
        if not len(times):
            raise BadRow("corrupt video", f"{row.video} has no picture at {first / fps:g} s")
        pictures = np.concatenate([part.pictures for part in parts])
        return Frames(pictures[:end], times[:end], parts[0].length_s)

    def _chunks(self, first: int, last: int) -> list[range]:
        """The frame numbers to decode together: whole chunks with a cache, which the video's other rows share."""
        if self.cache is None:
            return [range(first, last + 1)]
        return [
            range(chunk * CHUNK, (chunk + 1) * CHUNK) for chunk in range(first // CHUNK, last // CHUNK + 1)
        ]

    def _numbered(self, video: str, numbers: range, between: tuple[float, float]) -> Frames:
        """For each number the first frame at or after number / frames_per_second; repeated ones once.

        Of a cached chunk only those between two times, and the next one if there are none.
        """
        wanted = [number / self.frames_per_second for number in numbers]

        def read(container: Any, stream: Any) -> Frames:
            return self._pictures(container, stream, wanted)

        return self._get(video, ("dense", numbers), read, between)

    def _picture(self, path: str) -> Frames:
        return self._some(
            path, ("image",), lambda container, stream: self._pictures(container, stream, [0.0])
        )

    def _evenly(self, row: TrainingRow) -> Frames:
        """`max_frames` frames of the row's part of its video."""

        def read(container: Any, stream: Any) -> Frames:
            length_s = _length_s(container, stream)
            if not math.isfinite(length_s):
                raise BadRow("corrupt video", f"{row.video} does not say how long it is")
            start_s, end_s = row.time_range or (0.0, length_s)
            if start_s > length_s:
                raise BadRow("outside the clip", f"{row.video}: from {start_s:g} s on of {length_s:g} s")
            step_s = (min(end_s, length_s) - start_s) / self.max_frames
            wanted = [start_s + (i + 0.5) * step_s for i in range(self.max_frames)]
            return self._pictures(container, stream, wanted)

        return self._some(row.video, ("offline", row.time_range, self.max_frames), read)

    def _some(self, video: str, about: tuple[object, ...], read: Callable[[Any, Any], Frames]) -> Frames:
        """`_get`, at least one frame."""
        frames = self._get(video, about, read)
        if not len(frames.times):
            raise BadRow("corrupt video", f"{video} has no pictures")
        return frames

    def _get(
        self,
        video: str,
        about: tuple[object, ...],
        read: Callable[[Any, Any], Frames],
        between: tuple[float, float] = (-math.inf, math.inf),
    ) -> Frames:
        """What `read` gives of the open video, or what the cache has of it."""
        stamp = _stamp(video)
        if self.cache is None:
            return self._open(video, about[0] == "image", read)
        key = repr((video, *about, self.size, self.frames_per_second, stamp))
        return self.cache.get(key, lambda: self._open(video, about[0] == "image", read), between)

    def _open(self, video: str, is_picture: bool, read: Callable[[Any, Any], Frames]) -> Frames:
        try:
            with fsspec.open(video, "rb") as file, av.open(file) as container:
                if not container.streams.video:
                    raise BadRow("corrupt video", f"{video} has no video stream")
                if self.for_training and container.metadata.get("comment") == HELD_OUT:
                    raise BadRow("held out", f"{video} is {HELD_OUT}: train on other videos")
                stream = container.streams.video[0]
                limit = MAX_PICTURE_PIXELS if is_picture else MAX_VIDEO_PIXELS
                stream.codec_context.options = {"max_pixels": str(limit)}
                stream.thread_type = "NONE"
                return read(container, stream)
        except (FFmpegError, EOFError) as error:
            raise BadRow("corrupt video", f"{video} cannot be decoded: {error.__class__.__name__}") from error
        except OSError as error:
            raise BadRow("unreadable video", f"{video} cannot be read: {error}") from error

    def _pictures(self, container: Any, stream: Any, wanted: Sequence[float]) -> Frames:
        frames = list(_first_at_or_after(container, stream, wanted))
        pictures = [to_pixels(frame, self.size) for frame, _ in frames]
        stacked = np.stack(pictures) if pictures else np.zeros((0, self.size, self.size, 3), np.uint8)
        return Frames(stacked, np.array([time_s for _, time_s in frames]), _length_s(container, stream))


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
