"""What has to be known of a video file before it is sent, and the times of its packets.

Raw streams (.h264, .hevc, .mjpeg) store no times at all, and AVI stores none for pictures out of order. Such files are
timed by their frame rate.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction

import av
from av.container import InputContainer
from av.video.stream import VideoStream

RAW_FORMATS = ("h264", "hevc", "mjpeg")
DEFAULT_FRAME_RATE = Fraction(25)
MAX_FRAME_RATE = 240  # a higher one is a guess of the demuxer


@dataclass(frozen=True, slots=True, kw_only=True)
class FileFacts:
    """The video of a file."""

    codec: str
    longest_gop_s: float  # from one keyframe to the next, or to the end of the file
    frame_rate: Fraction | None  # of a file without times
    reordered: bool  # pictures may be stored out of order (B-frames)


def read_facts(container: InputContainer, stream: VideoStream, fps: float | None) -> FileFacts:
    """Read all packets, decoding none. `fps` is the frame rate of a file without times."""
    times: list[float | None] = []
    keyframes: list[int] = []  # positions
    for packet in container.demux(stream):
        if not packet.size:
            continue
        if packet.is_keyframe:
            keyframes.append(len(times))
        times.append(None if packet.pts is None else float(packet.pts * packet.time_base))
    known = [time_s for time_s in times if time_s is not None]
    reordered = bool(stream.codec_context.has_b_frames)
    ascending = known == sorted(known)
    untimed = (
        container.format.name in RAW_FORMATS
        or len(known) <= len(times) // 2
        or (container.format.name == "avi" and reordered and ascending)  # made up from decoding order
    )
    rate = frame_rate(stream, fps) if untimed else None
    seconds = [i / float(rate) for i in range(len(times))] if rate else fill(times)
    return FileFacts(
        codec=stream.codec_context.name,
        longest_gop_s=longest_gop_s(seconds, keyframes),
        frame_rate=rate,
        reordered=reordered,
    )


def frame_rate(stream: VideoStream, fps: float | None) -> Fraction:
    """The frame rate of a stream without times: as given, as the codec says, or 25."""
    if fps is not None:
        return Fraction(fps).limit_denominator(1001)
    for rate in (stream.guessed_rate, stream.average_rate):
        if rate and 0 < rate <= MAX_FRAME_RATE:
            return rate
    return DEFAULT_FRAME_RATE


def fill(times: list[float | None]) -> list[float]:
    """The times, with that of the packet before where one is missing."""
    filled, last_s = list[float](), 0.0
    for time_s in times:
        last_s = last_s if time_s is None else time_s
        filled.append(last_s)
    return filled


def longest_gop_s(times: list[float], keyframes: list[int]) -> float:
    """The longest time from one keyframe to the next, or to the end of the file."""
    if not keyframes:
        return 0.0
    starts = [times[i] for i in keyframes]
    return max(after - before for before, after in zip(starts, [*starts[1:], max(times)], strict=True))


def timed_packets(
    container: InputContainer, stream: VideoStream, rate: Fraction | None
) -> Iterator[av.Packet]:
    """The packets with bytes, in decoding order, each with `pts` and `time_base`.

    With `rate` they are counted. Else one without a time follows its predecessor by a frame.
    """
    last_pts: int | None = None
    default = 1 / (stream.average_rate or DEFAULT_FRAME_RATE)
    count = 0
    for packet in container.demux(stream):
        if not packet.size:
            continue
        if rate is not None:
            packet.time_base = 1 / rate
            packet.pts = count
        elif packet.pts is None:
            packet.time_base = packet.time_base or stream.time_base or default
            step = max(1, round(default / packet.time_base))
            known = packet.dts if packet.dts is not None else None if last_pts is None else last_pts + step
            packet.pts = count if known is None else known
        last_pts = packet.pts
        count += 1
        yield packet
