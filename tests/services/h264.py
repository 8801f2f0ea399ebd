"""Small real videos, made on the fly: what a camera would send."""

from __future__ import annotations

import contextlib
import io
import os
import struct
from collections.abc import Generator, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import numpy.typing as npt
from av.video.frame import PictureType
from PIL import ExifTags, Image

from services.messages.video import VideoPacket


def picture(i: int, width: int = 160, height: int = 120) -> npt.NDArray[np.uint8]:
    """A red square that moves right over grey noise: uint8 RGB [height, width, 3]."""
    noise = np.random.default_rng(0).integers(40, 90, (height, width, 1), dtype=np.uint8)
    image = np.repeat(noise, 3, axis=2)
    left = (i * 2) % (width // 2)
    image[height // 4 : height // 2, left : left + width // 4] = (220, 30, 30)
    return image


def encoded(
    num_frames: int,
    *,
    codec: str = "libx264",
    fps: int = 15,
    gop: int = 15,
    b_frames: int = 0,
    size: tuple[int, int] = (160, 120),
    use_b_frames: bool = True,
    options: Mapping[str, str] | None = None,
) -> list[av.Packet]:
    """Access units of a moving picture; pts counts frames. `use_b_frames=False` allows B-frames and has none."""
    encoder = av.CodecContext.create(codec, "w")
    assert isinstance(encoder, av.VideoCodecContext)
    encoder.width, encoder.height = size
    encoder.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
    encoder.time_base, encoder.framerate = Fraction(1, fps), Fraction(fps)
    if codec != "mjpeg":
        encoder.gop_size, encoder.max_b_frames = gop, b_frames
        encoder.options = {
            "preset": "veryfast",
            **({} if b_frames else {"tune": "zerolatency"}),
            **(options or {}),
        }
    if codec == "libx265":
        encoder.options |= {"x265-params": "log-level=none"}
    packets: list[av.Packet] = []
    for i in range(num_frames):
        frame = av.VideoFrame.from_ndarray(picture(i, *size), format="rgb24")
        frame.pts = i
        if not use_b_frames:
            frame.pict_type = PictureType.P if i % gop else PictureType.I
        packets += encoder.encode(frame)
    return packets + encoder.encode(None)


def camera_packets(
    packets: Sequence[av.Packet],
    *,
    camera: str = "door",
    codec: str = "h264",
    fps: int = 15,
    start_s: float = 1_800_000_000.0,
    first_seq: int = 0,
) -> list[VideoPacket]:
    """The packets as a camera sends them: captured at its frame rate."""
    return [
        VideoPacket(
            camera=camera,
            captured_s=start_s + (packet.pts or 0) / fps,
            codec=codec,
            keyframe=packet.is_keyframe,
            pts=packet.pts or 0,
            time_base=(1, fps),
            seq=first_seq + i,
            data=bytes(packet),
        )
        for i, packet in enumerate(packets)
    ]


@contextlib.contextmanager
def same_scheduling() -> Generator[None]:
    """For root, SVT-AV1 makes the thread that encodes a real-time one, and with it every process started later."""
    before = os.sched_getscheduler(0), os.sched_getparam(0)
    try:
        yield
    finally:
        os.sched_setscheduler(0, *before)


def clip(
    num_frames: int,
    *,
    container: str = "mp4",
    codec: str = "libx264",
    fps: int = 15,
    gop: int = 15,
    b_frames: int = 0,
    size: tuple[int, int] = (160, 120),
) -> bytes:
    """A whole video file."""
    file = io.BytesIO()
    with same_scheduling(), av.open(file, "w", format=container) as out:
        stream: Any = out.add_stream(codec, rate=fps)
        stream.width, stream.height = size
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        if codec in ("libx264", "libx265"):
            stream.codec_context.gop_size, stream.codec_context.max_b_frames = gop, b_frames
            stream.options = {"preset": "veryfast"}
        for i in range(num_frames):
            out.mux(stream.encode(av.VideoFrame.from_ndarray(picture(i, *size), format="rgb24")))
        out.mux(stream.encode(None))
    return file.getvalue()


def clip_file(folder: Path, name: str = "clip.mp4", **options: Any) -> Path:
    """The same, on disk."""
    path = folder / name
    path.write_bytes(clip(**options))
    return path


def held_sideways(mp4: bytes) -> bytes:
    """The file of a phone that was held upright: its track says that players turn it by 90 degrees clockwise."""
    data = bytearray(mp4)
    at = data.index(b"tkhd") + 44  # version 0: the matrix is 40 bytes behind version and flags
    data[at : at + 36] = struct.pack(">9i", 0, 0x10000, 0, -0x10000, 0, 0, 120 << 16, 0, 0x40000000)
    return bytes(data)


def jpeg_held_sideways(image: npt.NDArray[np.uint8], orientation: int = 6) -> bytes:
    """A JPEG whose EXIF data say how it has to be turned (6: 90 degrees clockwise)."""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    out = io.BytesIO()
    Image.fromarray(image).save(out, "JPEG", exif=exif, quality=95)
    return out.getvalue()


def mjpeg_bomb(side: int = 12_000) -> bytes:
    """A small JPEG that says it is a huge picture."""
    data = bytearray(bytes(encoded(1, codec="mjpeg")[0]))
    size_at = data.index(b"\xff\xc0") + 5  # start of frame: length, precision, height, width
    data[size_at : size_at + 4] = side.to_bytes(2, "big") * 2
    return bytes(data)
