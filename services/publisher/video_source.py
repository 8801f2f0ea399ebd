"""Encoded access units from a file, an RTSP camera or a video device of this machine.

Pictures are copied as they are encoded when readers know the codec (H.264, HEVC, MJPEG). Otherwise they are encoded as
H.264, and so is a file whose keyframes are so far apart that a late reader would wait too long.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

import av
from av.bitstream import BitStreamFilterContext
from av.container import InputContainer
from av.error import FFmpegError
from av.video.frame import PictureType
from av.video.stream import VideoStream

from services.messages.video import CODECS
from services.publisher.file_facts import FileFacts, read_facts, timed_packets
from services.video.rotation import rotation_of

MAX_COPIED_GOP_S = 2.0  # a file with longer groups of pictures is encoded again
TRANSCODED_GOP_S = 1.0
OPEN_TIMEOUT_S = 10.0
# Between two packets of a live source. To notice that it is gone takes up to twice as long.
READ_TIMEOUT_S = 5.0
# The formats that a file may have, also while it is probed. No playlists: they name other files or addresses.
FILE_FORMATS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,flv,asf,ogg,h264,hevc,mjpeg,ivf"
FILE_OPTIONS = {"protocol_whitelist": "file", "format_whitelist": FILE_FORMATS}
LIVE_OPTIONS = {
    "rtsp_transport": "tcp",
    "fflags": "nobuffer",
    "protocol_whitelist": "rtsp,rtp,udp,tcp,tls",
    "format_whitelist": "rtsp,rtp,sdp,h264,hevc,mjpeg",
    "codec_whitelist": "h264,hevc,mjpeg",
}
FILTERS = {"h264": "h264_mp4toannexb", "hevc": "hevc_mp4toannexb"}
PARAMETER_SETS = {"h264": (7, 8), "hevc": (32, 33, 34)}  # NAL unit types
START_CODE = re.compile(rb"\x00\x00\x01")


class SourceUnavailable(Exception):
    """A source that cannot be opened, or that ended with an error; the message says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AccessUnit:
    """One encoded picture, in Annex B form, with its parameter sets when it is a keyframe."""

    codec: str
    keyframe: bool
    pts: int
    time_base: Fraction
    data: bytes
    rotation: int = 0  # degrees clockwise to turn the picture

    @property
    def time_s(self) -> float:
        """Its time on the source's own clock."""
        return float(self.pts * self.time_base)


@dataclass(frozen=True, slots=True, kw_only=True)
class VideoSource:
    """Where to read from. A `live` source sends in real time; a file must be paced."""

    address: str
    live: bool
    transcode: bool = False
    frame_rate: Fraction | None = None  # of a file without times
    rotation: int = 0  # degrees clockwise to turn all pictures
    notes: tuple[str, ...] = ()  # what its owner should know, one line each

    @property
    def display_address(self) -> str:
        """The address for messages, without a password."""
        return re.sub(r"(?<=://)[^/]*@", "", self.address)

    def units(self) -> Iterator[AccessUnit]:
        """Access units in decoding order, until the source ends. SourceUnavailable when it ends with an error."""
        with open_container(self) as container:
            stream = video_stream(container, self.display_address)
            copy = stream.codec_context.name in CODECS and not self.transcode
            try:
                read = copy_units if copy else encode_units
                for unit in read(container, stream, self.frame_rate):
                    yield replace(unit, rotation=self.rotation) if self.rotation else unit
            except FFmpegError as error:
                raise SourceUnavailable(
                    f"{self.display_address}: reading the video failed ({error.strerror})"
                ) from error


def open_source(source: str, fps: float | None = None) -> VideoSource:
    """Open a path, `rtsp://...` or `/dev/videoN`. `@FILE` stands for the address in that file, to keep it out of ps.

    `fps` is the frame rate of a file without times (default: what its codec says, else 25).
    SourceUnavailable when it is missing or has no video. ValueError for an fps that no camera has.
    """
    if fps is not None and not 0.01 <= fps <= 1000:
        raise ValueError(f"fps: got {fps:g}, wanted 0.01 to 1000")
    if source.startswith("@"):
        try:
            return open_source(Path(source[1:]).read_text().strip().removeprefix("@"), fps)
        except (OSError, UnicodeDecodeError) as error:
            raise SourceUnavailable(f"{source}: cannot be read ({type(error).__name__})") from error
    if re.match(r"rtsps?://", source):
        return VideoSource(address=source, live=True)
    if source.startswith("/dev/video"):
        if not Path(source).exists():
            raise SourceUnavailable(f"{source}: no such camera on this machine")
        return VideoSource(address=source, live=True)
    if re.match(r"[a-z0-9+]+://", source):
        address = VideoSource(address=source, live=True).display_address
        raise SourceUnavailable(f"{address}: got an address, wanted a file, rtsp://... or /dev/videoN")
    if not Path(source).is_file():
        raise SourceUnavailable(f"{source}: no such file")
    return open_file(source, fps)


def open_file(path: str, fps: float | None) -> VideoSource:
    """A file: how its pictures are timed and turned, and whether they have to be encoded again."""
    file = VideoSource(address=path, live=False)
    with open_container(file) as container:
        facts = read_facts(container, video_stream(container, path), fps)
    with open_container(file) as container:
        rotation = first_rotation(container)
    notes: list[str] = []
    if facts.frame_rate is not None:
        given = "--fps" if fps is not None else "its own rate; --fps gives another"
        notes.append(
            f"{path}: has no times of its pictures: sent at {float(facts.frame_rate):g} fps ({given})"
        )
    if reason := reencoding_reason(facts):
        notes.append(
            f"{path}: is encoded again as H.264 with a keyframe every {TRANSCODED_GOP_S:g} s: {reason}"
        )
    return replace(
        file,
        transcode=bool(reason),
        frame_rate=facts.frame_rate,
        rotation=rotation,
        notes=tuple(notes),
    )


def reencoding_reason(facts: FileFacts) -> str:
    """Why the file's packets cannot be copied. Empty: they can."""
    if facts.codec not in CODECS:
        return f"its codec is {facts.codec}"
    if facts.frame_rate is not None and facts.reordered:
        return "its pictures are stored out of order, without times"
    if facts.longest_gop_s > MAX_COPIED_GOP_S:
        return f"its keyframes are up to {facts.longest_gop_s:.1f} s apart"
    return ""


def first_rotation(container: InputContainer) -> int:
    """How far the pictures have to be turned, as the first one says. 0 when it cannot be decoded."""
    try:
        return rotation_of(next(container.decode(video=0)))
    except (FFmpegError, StopIteration):
        return 0


def open_container(source: VideoSource) -> InputContainer:
    """Open the source with the options for its kind. SourceUnavailable says what went wrong."""
    options, kind = FILE_OPTIONS, None
    if source.address.startswith("/dev/"):
        options, kind = dict[str, str](), "v4l2"
    elif source.live:
        options, kind = LIVE_OPTIONS, "rtsp"
    try:
        timeout = (OPEN_TIMEOUT_S, READ_TIMEOUT_S) if source.live else None
        return av.open(source.address, "r", format=kind, options=options, timeout=timeout)
    except (FFmpegError, OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise SourceUnavailable(f"{source.display_address}: cannot be opened as video ({reason})") from None


def video_stream(container: InputContainer, address: str) -> VideoStream:
    """The first video stream. SourceUnavailable when there is none, or nothing knows its codec."""
    if not container.streams.video:
        raise SourceUnavailable(f"{address}: has no video stream")
    stream = container.streams.video[0]
    if getattr(stream, "codec_context", None) is None:  # its type says otherwise
        raise SourceUnavailable(f"{address}: its video has a codec that FFmpeg does not know, or is damaged")
    return stream


def copy_units(
    container: InputContainer, stream: VideoStream, frame_rate: Fraction | None = None
) -> Iterator[AccessUnit]:
    """The source's own packets in Annex B form, so that a decoder can start at any keyframe."""
    codec = stream.codec_context.name
    bitstream = BitStreamFilterContext(FILTERS[codec], stream) if codec in FILTERS else None
    extradata = stream.codec_context.extradata or b""
    sets = b"".join(parameter_sets(codec, extradata)) if START_CODE.match(extradata[1:]) else b""
    for raw in timed_packets(container, stream, frame_rate):
        pts, time_base = raw.pts or 0, raw.time_base or Fraction(1, 25)  # the filter empties the packet
        for packet in bitstream.filter(raw) if bitstream else [raw]:
            data, keyframe = bytes(packet), packet.is_keyframe or codec == "mjpeg"
            found = b"".join(parameter_sets(codec, data)) if keyframe else b""
            sets = found or sets
            yield AccessUnit(
                codec=codec,
                keyframe=keyframe,
                pts=pts,
                time_base=time_base,
                data=data if found or not keyframe else sets + data,
            )


def parameter_sets(codec: str, data: bytes) -> list[bytes]:
    """The parameter sets among the NAL units of an Annex B access unit, each with its start code."""
    wanted = PARAMETER_SETS.get(codec, ())
    starts = [match.end() for match in START_CODE.finditer(data)]
    ends = [start - 3 for start in starts[1:]] + [len(data)]
    found: list[bytes] = []
    for start, end in zip(starts, ends, strict=True):
        kind = data[start] & 31 if codec == "h264" else (data[start] >> 1) & 63 if start < len(data) else -1
        if kind in wanted:
            found.append(b"\x00\x00\x00\x01" + data[start:end].rstrip(b"\x00"))
    return found


def encode_units(
    container: InputContainer, stream: VideoStream, frame_rate: Fraction | None = None
) -> Iterator[AccessUnit]:
    """The pictures, encoded as H.264 without reordering and with a keyframe every second, as from a camera."""
    encoder: av.VideoCodecContext | None = None
    keyframe_s = float("-inf")
    for count, picture in enumerate(container.decode(stream)):
        time_base = picture.time_base or stream.time_base or Fraction(1, 25)
        pts = count if picture.pts is None else picture.pts
        if frame_rate is not None:
            time_base, pts = 1 / frame_rate, count
        size = (picture.width - picture.width % 2, picture.height - picture.height % 2)
        if encoder is None or (encoder.width, encoder.height) != size:
            encoder = open_encoder(*size, time_base, stream.average_rate or Fraction(25))
            keyframe_s = float("-inf")
        frame = picture.reformat(*size, format="yuv420p")
        frame.pts, frame.time_base = pts, time_base
        time_s = float(pts * time_base)
        due = not 0 <= time_s - keyframe_s < TRANSCODED_GOP_S - 1e-3
        frame.pict_type = PictureType.I if due else PictureType.NONE
        keyframe_s = time_s if due else keyframe_s
        for packet in encoder.encode(frame):
            yield AccessUnit(
                codec="h264",
                keyframe=packet.is_keyframe,
                pts=packet.pts if packet.pts is not None else pts,
                time_base=time_base,
                data=bytes(packet),
                rotation=rotation_of(picture),
            )


def open_encoder(width: int, height: int, time_base: Fraction, rate: Fraction) -> av.VideoCodecContext:
    """H.264, one packet out for each picture in, parameter sets in-band."""
    encoder = av.CodecContext.create("libx264", "w")
    assert isinstance(encoder, av.VideoCodecContext)
    encoder.width, encoder.height, encoder.pix_fmt = width, height, "yuv420p"
    encoder.time_base, encoder.framerate = time_base, rate
    encoder.gop_size = 100_000  # keyframes are requested by time
    encoder.options = {
        "preset": "veryfast",
        "tune": "zerolatency",
        "forced-idr": "1",
        "x264-params": "scenecut=0",
    }
    return encoder
