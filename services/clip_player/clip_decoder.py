"""Decodes a clip that came with a question. Its bytes may be hostile: the result is frames, or a clear refusal.

There are two passes. The first lists the packets, checks every limit and selects the frames, before any picture is
decoded. The second decodes no more than those frames need.
"""

from __future__ import annotations

import io
import struct
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
from PIL import ExifTags, Image, UnidentifiedImageError

from services.messages.video import ClipRefused
from services.video.rotation import rotation_of
from services.video.sampled_frame import SampledFrame, sample_frame

FORMATS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts"
CODECS = ("h264", "hevc", "mjpeg", "vp8", "vp9", "av1", "mpeg4")
DECODERS = "h264,hevc,mjpeg,vp8,vp9,libvpx,libvpx-vp9,libdav1d,av1,mpeg4"  # allowed while a file is probed
PICTURES = ("JPEG", "PNG", "WEBP", "GIF")
TRANSPOSES = {  # by EXIF orientation
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
MAX_PACKETS = 100_000
WANTED_VIDEO = "an MP4/MOV, Matroska/WebM, AVI or MPEG-TS file with " + ", ".join(CODECS) + " video"
WANTED_PICTURE = "a JPEG, PNG, WebP or GIF picture"


@dataclass(frozen=True, slots=True, kw_only=True)
class ClipLimits:
    """What a clip may cost, and how its frames are sampled."""

    frames_per_second: float
    capacity: int  # frames at most
    image_size: int  # S
    max_pixels: int
    max_bytes: int
    max_s: float = 600.0
    decode_budget_s: float = 20.0


@dataclass(frozen=True, slots=True)
class PacketInfo:
    """Time and kind of a packet, from the first pass."""

    time_s: float
    keyframe: bool


def decode_clip(media: bytes, kind: str, limits: ClipLimits, *, end_s: float) -> list[SampledFrame]:
    """The sampled frames of a "video" or an "image", oldest first. The last one is captured at `end_s`.

    ClipRefused says what was got and what was wanted.
    """
    if kind not in ("video", "image"):
        raise refused("kind", "the clip is neither a video nor an image")
    if not media:
        raise refused("empty", "the clip has no bytes")
    if len(media) > limits.max_bytes:
        raise refused("too_large", f"the clip has {len(media)} bytes, at most {limits.max_bytes} are taken")
    if kind == "image":
        return [decode_picture(media, limits, end_s)]
    listed = list_packets(media, limits)
    chosen = select_times([packet.time_s for packet in listed], limits)
    frames = list(decode_chosen(media, listed, chosen, limits, end_s))
    if not frames:
        raise refused("unreadable", f"no picture of the clip could be decoded; wanted {WANTED_VIDEO}")
    return frames


def refused(code: str, message: str) -> ClipRefused:
    """A refusal that the sender can correct."""
    return ClipRefused(400, f"clip_{code}", message)


def decode_picture(media: bytes, limits: ClipLimits, end_s: float) -> SampledFrame:
    """A still picture as a clip of one frame. Its size is checked before it is decoded."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # our own limit is lower
            image = Image.open(io.BytesIO(media), formats=PICTURES)
        with image:
            check_size(image.width, image.height, limits)
            picture = av.VideoFrame.from_image(upright(image).convert("RGB"))
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, SyntaxError, ValueError) as error:
        raise refused("unreadable", f"the picture could not be read; wanted {WANTED_PICTURE}") from error
    return sample_frame(picture, end_s, 0, limits.image_size)


def upright(image: Image.Image) -> Image.Image:
    """The picture as people see it: turned and mirrored as its EXIF data says, if that can be read."""
    try:
        how = TRANSPOSES.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except (ValueError, LookupError, TypeError, SyntaxError, OSError, struct.error):
        how = None
    return image if how is None else image.transpose(how)


def check_size(width: int, height: int, limits: ClipLimits) -> None:
    """Refuse a picture of more than `max_pixels`."""
    if width * height > limits.max_pixels:
        wanted = f"at most {limits.max_pixels} pixels are taken"
        raise refused("picture_too_large", f"the picture is {width}x{height}, {wanted}")


def open_clip(media: bytes) -> InputContainer:
    """The container, from memory alone: files and addresses that it names are never opened."""
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


def list_packets(media: bytes, limits: ClipLimits) -> list[PacketInfo]:
    """First pass: time and kind of every packet. Checks all limits and decodes nothing."""
    with open_clip(media) as container:
        stream = next((s for s in container.streams.video), None)
        if stream is None:
            raise refused("no_video", f"the clip has no video stream; wanted {WANTED_VIDEO}")
        codec = stream.codec_context.name.removeprefix("lib").split("-")[0].replace("dav1d", "av1")
        if codec not in CODECS:
            raise refused("codec", f"the clip's video codec is not taken; wanted one of {', '.join(CODECS)}")
        check_size(stream.codec_context.width, stream.codec_context.height, limits)
        listed: list[PacketInfo] = []
        for packet in demux(container):
            listed.append(PacketInfo(float(packet.pts * packet.time_base), packet.is_keyframe))
            if len(listed) > MAX_PACKETS:
                raise refused("too_long", f"the clip has more than {MAX_PACKETS} frames")
    if not any(packet.keyframe for packet in listed):
        raise refused("unreadable", f"the clip has no whole picture; wanted {WANTED_VIDEO}")
    times_s = [packet.time_s for packet in listed]
    duration_s = max(times_s) - min(times_s)
    if duration_s > limits.max_s:
        raise refused(
            "too_long", f"the clip lasts {duration_s:.0f} s, at most {limits.max_s:.0f} s are taken"
        )
    return listed


@dataclass(slots=True)
class TimedPacket:
    """A packet with a time."""

    pts: int
    time_base: Fraction
    is_keyframe: bool
    data: bytes


def demux(container: InputContainer) -> Iterator[TimedPacket]:
    """The video packets in decoding order. A damaged file ends early."""
    stream = container.streams.video[0]
    rate = stream.average_rate or stream.guessed_rate or Fraction(25)
    time_base = stream.time_base
    try:
        for i, packet in enumerate(p for p in container.demux(stream) if p.size):
            pts = packet.pts if packet.pts is not None else packet.dts
            if pts is None or not time_base:  # a format without times
                yield TimedPacket(i, 1 / rate, packet.is_keyframe, bytes(packet))
            else:
                yield TimedPacket(pts, time_base, packet.is_keyframe, bytes(packet))
    except (FFmpegError, ValueError):
        return


def select_times(times_s: list[float], limits: ClipLimits) -> set[float]:
    """The times of the frames to sample: at the usual rate, or spread evenly when that would be too many."""
    ordered = sorted(times_s)
    start_s, duration_s = ordered[0], ordered[-1] - ordered[0]
    count = int(duration_s * limits.frames_per_second + 1e-6) + 1
    step_s = 1 / limits.frames_per_second
    if count > limits.capacity:
        count = limits.capacity
        step_s = duration_s / max(1, count - 1)
    wanted = [start_s + i * step_s - 1e-4 for i in range(count)]
    return {ordered[min(bisect_left(ordered, t), len(ordered) - 1)] for t in wanted}


def mark_needed(listed: list[PacketInfo], chosen: set[float]) -> bytearray:
    """1 for each packet that the chosen frames need: their own, and those back to the keyframe before."""
    needed = bytearray(len(listed))
    keyframe = 0
    for i, packet in enumerate(listed):
        if packet.keyframe:
            keyframe = i
        if packet.time_s in chosen:
            needed[keyframe : i + 1] = b"\1" * (i + 1 - keyframe)
    return needed


def decode_chosen(
    media: bytes, listed: list[PacketInfo], chosen: set[float], limits: ClipLimits, end_s: float
) -> Iterator[SampledFrame]:
    """Second pass: the chosen frames in order of time, without damaged ones."""
    needed = mark_needed(listed, chosen)
    shift_s = end_s - max(chosen)
    deadline = time.monotonic() + limits.decode_budget_s
    for seq, (picture, time_s) in enumerate(decode_needed(media, needed, limits, deadline)):
        if time_s in chosen and not picture.is_corrupt:
            check_size(picture.width, picture.height, limits)
            rotation = rotation_of(picture)
            yield sample_frame(picture, time_s + shift_s, seq, limits.image_size, rotation=rotation)


def decode_needed(
    media: bytes, needed: bytearray, limits: ClipLimits, deadline: float
) -> Iterator[tuple[av.VideoFrame, float]]:
    """Pictures and times of the needed packets. ClipRefused when `deadline` (monotonic) passes."""
    with open_clip(media) as container:
        context = container.streams.video[0].codec_context
        context.thread_type = ThreadType.NONE
        context.thread_count = 1
        context.options = {"max_pixels": str(limits.max_pixels)}
        for i, timed in enumerate(demux(container)):
            if i >= len(needed) or time.monotonic() > deadline:
                break
            if not needed[i]:
                continue
            packet = av.Packet(timed.data)
            packet.pts, packet.time_base = timed.pts, timed.time_base
            last = i + 1 == len(needed) or not needed[i + 1]
            for picture in decode_packet(context, packet, drain=last):
                if picture.pts is not None:
                    yield picture, float(picture.pts * timed.time_base)
    if time.monotonic() > deadline:
        raise refused("too_slow", f"the clip takes more than {limits.decode_budget_s:.0f} s to decode")


def decode_packet(context: av.VideoCodecContext, packet: av.Packet, *, drain: bool) -> list[av.VideoFrame]:
    """The pictures of a packet. `drain` also returns those that the codec holds back, at the end of a run."""
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
