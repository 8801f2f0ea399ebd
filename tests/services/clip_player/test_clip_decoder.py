"""Clips that came with a question: which frames are looked at, and what is refused."""

from __future__ import annotations

import io
import re
import time
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from services.clip_player.clip_decoder import ClipLimits, decode_clip, decode_needed
from services.messages.video import ClipRefused
from services.ports.frame_store import parse_frame_id
from tests.services.h264 import clip, encoded, mjpeg_bomb, picture

END_S = 1_800_000_000.0


def limits(**changes: Any) -> ClipLimits:
    chosen: dict[str, Any] = {
        "frames_per_second": 5.0,
        "capacity": 16,
        "image_size": 48,
        "max_pixels": 4096 * 2304,
        "max_bytes": 24 * 2**20,
    }
    return ClipLimits(**(chosen | changes))


def times(media: bytes, **changes: Any) -> list[float]:
    """When the frames of a clip were taken, before its end."""
    frames = decode_clip(media, "video", limits(**changes), end_s=END_S)
    assert [parse_frame_id(f.frame_id) for f in frames] == sorted(
        {parse_frame_id(f.frame_id) for f in frames}
    )
    return [round(END_S - f.captured_s, 3) for f in frames]


def refusal(media: bytes, kind: str = "video", **changes: Any) -> ClipRefused:
    """How a clip is refused, quickly."""
    started = time.monotonic()
    with pytest.raises(ClipRefused) as refused:
        decode_clip(media, kind, limits(**changes), end_s=END_S)
    assert time.monotonic() - started < 5
    assert refused.value.status == 400
    assert not re.search(r"\b0x|libav|Errno|InvalidData|moov", refused.value.message)
    return refused.value


@pytest.mark.parametrize(
    ("container", "codec"),
    [
        ("mp4", "libx264"),
        ("matroska", "libx265"),
        ("avi", "mjpeg"),
        ("mpegts", "libx264"),
        ("webm", "libvpx-vp9"),
    ],
)
def test_each_format_is_read(container: str, codec: str) -> None:
    found = times(clip(30, container=container, codec=codec))
    assert len(found) == 10
    assert found[0] == pytest.approx(1.8, abs=0.01)


@pytest.mark.parametrize("b_frames", [0, 3])
def test_a_short_clip_is_looked_at_as_a_camera_is(b_frames: int) -> None:
    found = times(clip(45, b_frames=b_frames))
    assert found == pytest.approx([2.8 - i * 0.2 for i in range(15)], abs=0.001)


def test_a_long_clip_is_spread_evenly_over_the_fifo() -> None:
    found = times(clip(300, b_frames=2), capacity=4)
    assert len(found) == 4
    assert found[0] == pytest.approx(299 / 15, abs=0.01)
    assert found[-1] == 0
    assert np.diff(found) == pytest.approx([-299 / 45] * 3, abs=0.07)


def test_the_right_pictures_come_out() -> None:
    frames = decode_clip(clip(60, gop=15, b_frames=2), "video", limits(capacity=3), end_s=END_S)
    for frame, i in zip(frames, (0, 30, 59), strict=True):
        pixels = np.frombuffer(frame.pixels, np.uint8).reshape(48, 48, 3)
        wanted = np.asarray(Image.fromarray(picture(i)).resize((48, 48), Image.Resampling.BOX)).astype(int)
        assert np.abs(pixels - wanted).mean() < 12


def test_a_single_frame_is_a_clip() -> None:
    assert times(clip(1)) == [0]


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF"])
def test_each_kind_of_picture_is_read(kind: str) -> None:
    file = io.BytesIO()
    Image.fromarray(picture(0)).save(file, kind)
    frames = decode_clip(file.getvalue(), "image", limits(), end_s=END_S)
    assert [f.captured_s for f in frames] == [END_S]


def sound() -> bytes:
    """A file with sound and no picture."""
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as out:
        stream: Any = out.add_stream("aac", rate=16_000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 16_000), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 16_000
        out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    return file.getvalue()


def mp4_bomb(jpeg: bytes) -> bytes:
    """A small file that says 64x64, and whose one picture is larger."""
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as out:
        stream: Any = out.add_stream("mjpeg", rate=1)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuvj420p"
        packet = av.Packet(jpeg)
        packet.pts = packet.dts = 0
        packet.stream = stream
        packet.is_keyframe = True
        out.mux(packet)
    return file.getvalue()


def png(side: int) -> bytes:
    file = io.BytesIO()
    Image.new("1", (side, side)).save(file, "PNG")
    return file.getvalue()


def test_what_is_no_clip_is_refused_clearly() -> None:
    whole = clip(30)
    noise = np.random.default_rng(0).integers(0, 255, 50_000, dtype=np.uint8).tobytes()
    playlist = b"#EXTM3U\n#EXT-X-TARGETDURATION:5\n#EXTINF:5,\nhttp://127.0.0.1:1/secret.ts\n"
    assert refusal(b"").code == "clip_empty"
    assert refusal(whole, max_bytes=1000).code == "clip_too_large"
    for broken in (
        noise,
        whole[: len(whole) // 2],
        whole[:40],
        playlist,
        b"ffconcat version 1.0\nfile /etc/passwd\n",
    ):
        refused = refusal(broken)
        assert refused.code == "clip_unreadable"
        assert "wanted an MP4/MOV" in refused.message
    assert refusal(b"".join(bytes(p) for p in encoded(5))).code == "clip_unreadable"  # no container
    assert refusal(sound()).code == "clip_no_video"
    assert refusal(clip(20), max_s=1.0).message == "the clip lasts 1 s, at most 1 s are taken"
    assert refusal(clip(2, size=(640, 480)), max_pixels=100_000).code == "clip_picture_too_large"
    assert refusal(mp4_bomb(mjpeg_bomb())).code in ("clip_picture_too_large", "clip_unreadable")
    assert refusal(clip(90, size=(640, 480)), decode_budget_s=0.0).code == "clip_too_slow"
    assert refusal(clip(1), "sculpture").code == "clip_kind"


def test_no_picture_over_the_limit_is_decoded() -> None:
    file, deadline = io.BytesIO(), time.monotonic() + 60
    Image.new("RGB", (4800, 2600)).save(file, "JPEG")
    bomb = mp4_bomb(file.getvalue())
    ((found, _),) = decode_needed(bomb, bytearray(b"\1"), limits(max_pixels=4800 * 2600), deadline)
    assert (found.width, found.height) == (4800, 2600)
    assert not list(decode_needed(bomb, bytearray(b"\1"), limits(), deadline))


def test_what_is_no_picture_is_refused_clearly() -> None:
    noise = np.random.default_rng(0).integers(0, 255, 50_000, dtype=np.uint8).tobytes()
    assert refusal(noise, "image").code == "clip_unreadable"
    assert refusal(png(1000)[:80], "image").code == "clip_unreadable"
    assert refusal(clip(3), "image").code == "clip_unreadable"
    for bomb in (png(12_000), mjpeg_bomb()):
        assert "12000x12000" in refusal(bomb, "image").message


def test_a_damaged_clip_gives_its_good_frames() -> None:
    whole = bytearray(clip(60, container="mpegts"))
    half = len(whole) // 2
    whole[half : half + 4000] = bytes(4000)
    assert 5 <= len(times(bytes(whole))) <= 20
