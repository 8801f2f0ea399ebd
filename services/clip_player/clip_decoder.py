"""A clip that came with a question: hostile bytes in, the frames to look at out, or a clear refusal.

Two passes: the first only lists the packets, so that every limit is checked and the frames are chosen before any
picture is decoded; the second decodes no more than those frames need.
"""

from __future__ import annotations

import io
import time
import warnings
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction

import av
from av.codec.context import ThreadType
from av.container import InputContainer
from av.error import FFmpegError
from PIL import Image, UnidentifiedImageError

from services.frame_fifo.camera_decoder import SampledFrame, sampled_frame
from services.messages.video import ClipRefused

FORMATS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts"
CODECS = ("h264", "hevc", "mjpeg", "vp8", "vp9", "av1", "mpeg4")
DECODERS = (
    "h264,hevc,mjpeg,vp8,vp9,libvpx,libvpx-vp9,libdav1d,av1,mpeg4"  # what may run while a file is probed
)
PICTURES = ("JPEG", "PNG", "WEBP", "GIF")
MAX_PACKETS = 100_000
WANTED_VIDEO = "an MP4/MOV, Matroska/WebM, AVI or MPEG-TS file with " + ", ".join(CODECS) + " video"
WANTED_PICTURE = "a JPEG, PNG, WebP or GIF picture"


@dataclass(frozen=True, slots=True, kw_only=True)
class ClipLimits:
    """What a clip may cost, and how its frames are chosen."""

    frames_per_second: float
    capacity: int  # frames at most
    image_size: int  # S
    max_pixels: int
    max_bytes: int
    max_s: float = 600.0
    decode_budget_s: float = 20.0


@dataclass(frozen=True, slots=True)
class Unit:
    """A packet of the first pass."""

    time_s: float
    keyframe: bool


def decode_clip(media: bytes, kind: str, limits: ClipLimits, *, end_s: float) -> list[SampledFrame]:
    """The frames of a "video" or an "image" to look at, oldest first, the last one captured at `end_s`.

    ClipRefused says what was got and what is wanted.
    """
    if kind not in ("video", "image"):
        raise refused("kind", "the clip is neither a video nor an image")
    if not media:
        raise refused("empty", "the clip has no bytes")
    if len(media) > limits.max_bytes:
        raise refused("too_large", f"the clip has {len(media)} bytes, at most {limits.max_bytes} are taken")
    if kind == "image":
        return [decode_picture(media, limits, end_s)]
    units = list_units(media, limits)
    chosen = choose([unit.time_s for unit in units], limits)
    frames = list(decode_units(media, units, chosen, limits, end_s))
    if not frames:
        raise refused("unreadable", f"no picture of the clip could be decoded; wanted {WANTED_VIDEO}")
    return frames


def refused(code: str, message: str) -> ClipRefused:
    """A refusal that is the sender's to mend."""
    return ClipRefused(400, f"clip_{code}", message)


def decode_picture(media: bytes, limits: ClipLimits, end_s: float) -> SampledFrame:
    """A still picture as a clip of one frame; its size is checked before it is decoded."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # our own limit is lower
            image = Image.open(io.BytesIO(media), formats=PICTURES)
        with image:
            check_size(image.width, image.height, limits)
            picture = av.VideoFrame.from_image(image.convert("RGB"))
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, SyntaxError, ValueError) as error:
        raise refused("unreadable", f"the picture could not be read; wanted {WANTED_PICTURE}") from error
    return sampled_frame(picture, end_s, 0, limits.image_size)


def check_size(width: int, height: int, limits: ClipLimits) -> None:
    """Refuse a picture that would not fit."""
    if width * height > limits.max_pixels:
        wanted = f"at most {limits.max_pixels} pixels are taken"
        raise refused("picture_too_large", f"the picture is {width}x{height}, {wanted}")


def open_clip(media: bytes) -> InputContainer:
    """The container, from memory alone: no other file or address that it names is ever opened."""
    options = {
        "format_whitelist": FORMATS,
        "protocol_whitelist": "none",
        "max_streams": "16",
        "codec_whitelist": DECODERS,
        "probesize": "1000000",
        "analyzeduration": "1000000",
    }
    try:
        return av.open(io.BytesIO(media), "r", options=options)
    except (FFmpegError, ValueError, OSError) as error:
        raise refused("unreadable", f"the clip could not be read; wanted {WANTED_VIDEO}") from error


def list_units(media: bytes, limits: ClipLimits) -> list[Unit]:
    """First pass: every packet's time and kind, nothing decoded; checks all limits."""
    with open_clip(media) as container:
        stream = next((s for s in container.streams.video), None)
        if stream is None:
            raise refused("no_video", f"the clip has no video stream; wanted {WANTED_VIDEO}")
        codec = stream.codec_context.name.removeprefix("lib").split("-")[0].replace("dav1d", "av1")
        if codec not in CODECS:
            raise refused("codec", f"the clip's video codec is not taken; wanted one of {', '.join(CODECS)}")
        check_size(stream.codec_context.width, stream.codec_context.height, limits)
        units: list[Unit] = []
        for packet in packets(container):
            units.append(Unit(float(packet.pts * packet.time_base), packet.is_keyframe))
            if len(units) > MAX_PACKETS:
                raise refused("too_long", f"the clip has more than {MAX_PACKETS} frames")
    if not any(unit.keyframe for unit in units):
        raise refused("unreadable", f"the clip has no whole picture; wanted {WANTED_VIDEO}")
    lasts_s = max(u.time_s for u in units) - min(u.time_s for u in units)
    if lasts_s > limits.max_s:
        raise refused("too_long", f"the clip lasts {lasts_s:.0f} s, at most {limits.max_s:.0f} s are taken")
    return units


@dataclass(slots=True)
class Numbered:
    """A packet that surely has a time."""

    pts: int
    time_base: Fraction
    is_keyframe: bool
    data: bytes


def packets(container: InputContainer) -> Iterator[Numbered]:
    """The video packets in decoding order; a damaged file just ends."""
    stream = container.streams.video[0]
    rate = stream.average_rate or stream.guessed_rate or Fraction(25)
    time_base = stream.time_base
    try:
        for i, packet in enumerate(p for p in container.demux(stream) if p.size):
            pts = packet.pts if packet.pts is not None else packet.dts
            if pts is None or not time_base:  # formats without times
                yield Numbered(i, 1 / rate, packet.is_keyframe, bytes(packet))
            else:
                yield Numbered(pts, time_base, packet.is_keyframe, bytes(packet))
    except (FFmpegError, ValueError):
        return


def choose(times_s: list[float], limits: ClipLimits) -> set[float]:
    """The times of the frames to look at: at the usual rate, or spread evenly when that would be too many."""
    line = sorted(times_s)
    start_s, lasts_s = line[0], line[-1] - line[0]
    count = int(lasts_s * limits.frames_per_second + 1e-6) + 1
    step_s = 1 / limits.frames_per_second
    if count > limits.capacity:
        count = limits.capacity
        step_s = lasts_s / max(1, count - 1)
    wanted = [start_s + i * step_s - 1e-4 for i in range(count)]
    return {line[min(bisect_left(line, t), len(line) - 1)] for t in wanted}


def needed_units(units: list[Unit], chosen: set[float]) -> bytearray:
    """1 for each packet that the chosen frames are decoded from: theirs, back to the keyframe before."""
    needed = bytearray(len(units))
    keyframe = 0
    for i, unit in enumerate(units):
        if unit.keyframe:
            keyframe = i
        if unit.time_s in chosen:
            needed[keyframe : i + 1] = b"\1" * (i + 1 - keyframe)
    return needed


def decode_units(
    media: bytes, units: list[Unit], chosen: set[float], limits: ClipLimits, end_s: float
) -> Iterator[SampledFrame]:
    """Second pass: the chosen frames in order of time, without those that turn out damaged."""
    needed = needed_units(units, chosen)
    shift_s = end_s - max(chosen)
    out_of_time = time.monotonic() + limits.decode_budget_s
    for seq, (picture, time_s) in enumerate(pictures(media, needed, limits, out_of_time)):
        if time_s in chosen and not picture.is_corrupt:
            check_size(picture.width, picture.height, limits)
            yield sampled_frame(picture, time_s + shift_s, seq, limits.image_size)


def pictures(
    media: bytes, needed: bytearray, limits: ClipLimits, out_of_time: float
) -> Iterator[tuple[av.VideoFrame, float]]:
    """Pictures and times of the needed packets. ClipRefused when decoding takes longer than until `out_of_time`."""
    with open_clip(media) as container:
        context = container.streams.video[0].codec_context
        context.thread_type = ThreadType.NONE
        context.thread_count = 1
        context.options = {"max_pixels": str(limits.max_pixels)}
        for i, unit in enumerate(packets(container)):
            if i >= len(needed) or time.monotonic() > out_of_time:
                break
            if not needed[i]:
                continue
            packet = av.Packet(unit.data)
            packet.pts, packet.time_base = unit.pts, unit.time_base
            last = i + 1 == len(needed) or not needed[i + 1]
            for picture in decoded(context, packet, drain=last):
                if picture.pts is not None:
                    yield picture, float(picture.pts * unit.time_base)
    if time.monotonic() > out_of_time:
        raise refused("too_slow", f"the clip takes more than {limits.decode_budget_s:.0f} s to decode")


def decoded(context: av.VideoCodecContext, packet: av.Packet, *, drain: bool) -> list[av.VideoFrame]:
    """The pictures that come out for a packet, with those held back when it is the last of a run."""
    found: list[av.VideoFrame] = []
    try:
        found += context.decode(packet)
        if drain:
            found += context.decode(None)
    except (FFmpegError, ValueError, MemoryError):
        drain = True
    if drain:
        context.flush_buffers()
    return found
