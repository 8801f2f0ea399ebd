"""Decodes the packets of one camera and samples its frames.

The state between packets is a codec context, the capture times of packets still inside it, and the sampler. A decoder
belongs to one thread.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction
from typing import Literal

import av
from av.codec.context import ThreadType
from av.error import FFmpegError

from services.frame_fifo.frame_sampler import FrameSampler
from services.messages.video import VideoPacket
from services.video.picture_size import picture_size
from services.video.reordering import without_reordering
from services.video.rotation import rotation_of
from services.video.sampled_frame import SampledFrame, sample_frame

MAX_IN_CODEC = 64  # packets that a codec may hold back (B-frames need a few)
MAX_KNOWN = 10_000  # packets since a keyframe that are recognised when they come again
NUM_IN_ORDER = (
    60  # packets in display order, after which a stream that allows reordering is taken to have none
)

SkipReason = Literal["", "no_keyframe", "lost_packet", "damaged", "too_large", "repeated"]


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodedPacket:
    """The result of one packet."""

    frames: tuple[SampledFrame, ...] = ()
    num_late: int = 0  # frames that were due, and were not sampled on request
    skipped: SkipReason = ""  # why the packet was not decoded, or is damaged
    problem: str = ""  # for people, when the packet is damaged or its picture too large


@dataclass(slots=True)
class CameraDecoder:
    """Decodes packets in order. At the start, and after a lost or damaged packet, it waits for a keyframe."""

    frames_per_second: float
    image_size: int  # S
    max_pixels: int
    sampler: FrameSampler = field(init=False)
    _context: av.VideoCodecContext | None = field(init=False, default=None)
    _in_codec: dict[int, tuple[float, int]] = field(
        init=False, default_factory=dict
    )  # pts -> captured_s, seq
    _last: VideoPacket | None = field(init=False, default=None)
    _known: set[tuple[int, int, float]] = field(
        init=False, default_factory=set[tuple[int, int, float]]
    )  # seq, pts, captured_s of the packets decoded since the keyframe
    _num_in_order: int = field(init=False, default=0)  # packets in display order, up to the last one
    _in_order: bool = field(init=False, default=False)  # the codec was told to hold no picture back

    def __post_init__(self) -> None:
        self.sampler = FrameSampler(self.frames_per_second)

    @property
    def needs_keyframe(self) -> bool:
        """Whether it can continue only at a keyframe."""
        return self._context is None

    def reset(self) -> None:
        """Drop all state and wait for a keyframe: packets were, or will be, left out."""
        self._context = None
        self._in_codec.clear()
        self._known.clear()

    def decode(self, packet: VideoPacket, *, sample: bool = True) -> DecodedPacket:
        """Decode the next packet. `sample=False` only keeps the codec going. Never raises for damaged bytes.

        A packet that was decoded before is skipped: a publisher sends a GOP again when its topic was made again.
        """
        name = packet.seq, packet.pts, packet.captured_s
        if name in self._known:
            return DecodedPacket(skipped="repeated")
        last, self._last = self._last, packet
        in_order = last is not None and packet.seq == last.seq + 1 and packet.codec == last.codec
        if not in_order and not self.needs_keyframe:
            self.reset()
            if not packet.keyframe:
                return DecodedPacket(skipped="lost_packet")
        self._num_in_order = self._num_in_order + 1 if last is None or packet.pts > last.pts else 0
        if self._context is None and not packet.keyframe:
            return DecodedPacket(skipped="no_keyframe")
        held = self._begin_gop(packet) if packet.keyframe else []
        if packet.keyframe or len(self._known) >= MAX_KNOWN:
            self._known.clear()
        self._known.add(name)
        return self._decode(packet, held, sample)

    def _begin_gop(self, packet: VideoPacket) -> list[av.VideoFrame]:
        """At a keyframe: open a codec if there is none, or if pictures need not be held back, or must be, from now on.

        Returns the pictures that the codec before still held.
        """
        seems_in_order = self._num_in_order >= NUM_IN_ORDER
        in_order = seems_in_order and without_reordering(packet.codec, packet.data) != packet.data
        if self._context is not None and in_order == self._in_order:
            return []
        try:
            held = [] if self._context is None else self._context.decode(None)
        except FFmpegError:
            held = []
        self._context, self._in_order = open_decoder(packet.codec, self.max_pixels), in_order
        return held

    def _decode(self, packet: VideoPacket, held: list[av.VideoFrame], sample: bool) -> DecodedPacket:
        assert self._context is not None
        unit = av.Packet(without_reordering(packet.codec, packet.data) if self._in_order else packet.data)
        unit.pts = packet.pts
        unit.time_base = Fraction(*packet.time_base)
        self._in_codec[packet.pts] = (packet.captured_s, packet.seq)
        try:
            pictures = [*held, *self._context.decode(unit)]
        except (FFmpegError, ValueError, MemoryError):
            pictures = None
        if pictures is None or any(p.is_corrupt for p in pictures) or len(self._in_codec) > MAX_IN_CODEC:
            self.reset()
            return self._refused(packet)
        if size := next(
            ((p.width, p.height) for p in pictures if p.width * p.height > self.max_pixels), None
        ):
            self.reset()
            return self._too_large(*size)
        due = [found for p in pictures if self.sampler.accepts((found := self._timed(p, packet))[1])]
        if self._in_order:
            self._in_codec.clear()  # of a stream that begins to reorder, the codec drops the pictures that come late
        if not sample:
            return DecodedPacket(num_late=len(due))
        return DecodedPacket(frames=tuple(self._sampled(*found, packet) for found in due))

    def _refused(self, packet: VideoPacket) -> DecodedPacket:
        """Why a packet cannot be decoded: the codec only says that it cannot."""
        size = picture_size(packet.codec, packet.data)
        if size is not None and size[0] * size[1] > self.max_pixels:
            return self._too_large(*size)
        problem = f"access unit: cannot be decoded as {packet.codec}"
        return DecodedPacket(skipped="damaged", problem=problem)

    def _too_large(self, width: int, height: int) -> DecodedPacket:
        got = f"{width}x{height} ({width * height} pixels)"
        wanted = f"wanted at most {self.max_pixels} pixels (STREAMCHAT_MAX_PIXELS)"
        return DecodedPacket(skipped="too_large", problem=f"picture: too large: got {got}, {wanted}")

    def _sampled(
        self, picture: av.VideoFrame, captured_s: float, seq: int, packet: VideoPacket
    ) -> SampledFrame:
        rotation = rotation_of(picture) if packet.rotation is None else packet.rotation
        return sample_frame(picture, captured_s, seq, self.image_size, rotation=rotation)

    def _timed(self, picture: av.VideoFrame, packet: VideoPacket) -> tuple[av.VideoFrame, float, int]:
        """A picture with the capture time and number of its own packet, even when the codec reorders."""
        times = packet.captured_s, packet.seq
        return picture, *(times if picture.pts is None else self._in_codec.pop(picture.pts, times))


def open_decoder(codec: str, max_pixels: int) -> av.VideoCodecContext:
    """A decoder that returns each picture as soon as its packet is complete, and none far above `max_pixels`."""
    context = av.CodecContext.create(codec, "r")
    assert isinstance(context, av.VideoCodecContext)
    context.thread_type = ThreadType.NONE  # frame threads delay pictures; many cameras share the cores anyway
    # Encoders round the size up to whole blocks, which are cut off after decoding: 1080 lines are stored as 1088.
    context.options = {"max_pixels": str(max_pixels + max_pixels // 32 + 2**16)}
    return context
