"""One camera's decoder: access units in, the frames worth looking at out.

The state that lasts between packets is a codec context, the capture times of packets still inside it, and the next
time at which a frame is due. One thread uses a decoder.
"""

from __future__ import annotations

import io
import math
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Literal

import av
from av.codec.context import ThreadType
from av.error import FFmpegError
from av.video.reformatter import Interpolation
from PIL import Image

from model.network.pixels import to_pixels
from services.messages.video import VideoPacket

JPEG_WIDTH = 480  # pixels at most: for people to look at
JPEG_QUALITY = 75
NUM_INSIDE = 64  # packets that a codec may hold back at most (B-frames need a few)
JITTER = (
    0.1  # of a period: a frame that much too early is on time, or a 5 FPS camera would give 4 of 5 frames
)

Skipped = Literal["", "no_keyframe", "lost_packet", "damaged", "repeated"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SampledFrame:
    """A frame to be encoded."""

    frame_id: str  # "<captured_ms>-<seq>"
    captured_s: float
    pixels: bytes  # uint8 RGB [S, S, 3], S the vision encoder's image size
    picture: av.VideoFrame | bytes  # for people: at most 480 pixels wide, or that as a JPEG

    def jpeg(self) -> bytes:
        """The picture for people; made when it is asked for, so that a frame that is overtaken costs less."""
        return self.picture if isinstance(self.picture, bytes) else to_jpeg(self.picture)


@dataclass(frozen=True, slots=True, kw_only=True)
class Decoded:
    """What came of one packet."""

    frames: tuple[SampledFrame, ...] = ()
    num_late: int = 0  # frames that were due, and were left out as told
    skipped: Skipped = ""  # why the packet was not decoded, or not well


@dataclass(slots=True)
class Pace:
    """Takes frames at `frames_per_second` on the line of capture times: exactly so many on average, none twice."""

    frames_per_second: float
    due_s: float | None = None

    def takes(self, captured_s: float) -> bool:
        """Whether the frame captured then is the next to be looked at."""
        period_s = 1 / self.frames_per_second
        early_s = JITTER * period_s
        if self.due_s is None:
            self.due_s = captured_s + period_s
            return True
        late_s = captured_s - (self.due_s - early_s)
        if late_s < 0:
            return False
        # The next time on the grid that lies ahead: a gap is not made up for, and rounding does not add up.
        self.due_s += period_s * (math.floor(late_s / period_s) + 1)
        return True


@dataclass(slots=True)
class CameraDecoder:
    """Decodes one camera's packets in order; a new one, or one that lost something, waits for a keyframe."""

    frames_per_second: float
    image_size: int  # S
    max_pixels: int
    pace: Pace = field(init=False)
    codec: str = field(init=False, default="")
    _context: av.VideoCodecContext | None = field(init=False, default=None)
    _inside: dict[int, tuple[float, int]] = field(init=False, default_factory=dict)  # pts -> captured_s, seq
    _last: VideoPacket | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        self.pace = Pace(self.frames_per_second)

    @property
    def waiting(self) -> bool:
        """Whether nothing but a keyframe helps."""
        return self._context is None

    def reset(self) -> None:
        """Forget what was decoded and wait for a keyframe: packets were, or will be, left out."""
        self._context = None
        self._inside.clear()

    def feed(self, packet: VideoPacket, *, sample: bool = True) -> Decoded:
        """Decode the next packet; with `sample` False only to be able to go on. Never raises for bad bytes."""
        last, self._last = self._last, packet
        if last is not None and (packet.seq, packet.pts) == (last.seq, last.pts) and not self.waiting:
            return Decoded(skipped="repeated")
        in_order = last is not None and packet.seq == last.seq + 1 and packet.codec == last.codec
        if not in_order and not self.waiting:
            self.reset()
            if not packet.keyframe:
                return Decoded(skipped="lost_packet")
        if self._context is None:
            if not packet.keyframe:
                return Decoded(skipped="no_keyframe")
            self._context = open_decoder(packet.codec, self.max_pixels)
            self.codec = packet.codec
        return self._decode(self._context, packet, sample)

    def _decode(self, context: av.VideoCodecContext, packet: VideoPacket, sample: bool) -> Decoded:
        unit = av.Packet(packet.data)
        unit.pts = packet.pts
        unit.time_base = Fraction(*packet.time_base)
        self._inside[packet.pts] = (packet.captured_s, packet.seq)
        try:
            pictures = context.decode(unit)
        except (FFmpegError, ValueError, MemoryError):
            pictures = None
        if pictures is None or any(p.is_corrupt for p in pictures) or len(self._inside) > NUM_INSIDE:
            self.reset()
            return Decoded(skipped="damaged")
        due = [found for p in pictures if self.pace.takes((found := self._timed(p, packet))[1])]
        if not sample:
            return Decoded(num_late=len(due))
        return Decoded(frames=tuple(sampled_frame(*found, self.image_size) for found in due))

    def _timed(self, picture: av.VideoFrame, packet: VideoPacket) -> tuple[av.VideoFrame, float, int]:
        """With its capture time and number: those of the packet that it was in, even when reordered."""
        times = packet.captured_s, packet.seq
        return picture, *(times if picture.pts is None else self._inside.pop(picture.pts, times))


def open_decoder(codec: str, max_pixels: int) -> av.VideoCodecContext:
    """A decoder that gives each picture as soon as its packet is in, and none larger than `max_pixels`."""
    context = av.CodecContext.create(codec, "r")
    assert isinstance(context, av.VideoCodecContext)
    context.thread_type = (
        ThreadType.NONE
    )  # frame threads hold pictures back; many cameras share the cores anyway
    context.options = {"max_pixels": str(max_pixels)}
    return context


def sampled_frame(picture: av.VideoFrame, captured_s: float, seq: int, image_size: int) -> SampledFrame:
    """The picture in the two forms that are kept of it."""
    return SampledFrame(
        frame_id=f"{round(captured_s * 1000)}-{seq}",
        captured_s=captured_s,
        pixels=to_pixels(picture, image_size).tobytes(),
        picture=to_small(picture),
    )


def to_small(picture: av.VideoFrame) -> av.VideoFrame:
    """The whole picture, small; in the colours it came in, which are fewer numbers."""
    scale = min(1.0, JPEG_WIDTH / picture.width)
    return picture.reformat(
        width=max(1, round(picture.width * scale)),
        height=max(1, round(picture.height * scale)),
        interpolation=Interpolation.AREA,
        threads=1,
    )


def to_jpeg(small: av.VideoFrame) -> bytes:
    """A picture as a JPEG."""
    out = io.BytesIO()
    pixels = small.reformat(format="rgb24", threads=1).to_ndarray()
    Image.fromarray(pixels).save(out, "JPEG", quality=JPEG_QUALITY)
    return out.getvalue()
