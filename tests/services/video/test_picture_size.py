"""The size of a picture is read from its encoded form, and never fails on damaged bytes."""

from __future__ import annotations

from fractions import Fraction

import av
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.video.picture_size import picture_size
from tests.services.h264 import encoded

CODECS = [("libx264", "h264"), ("libx265", "hevc"), ("mjpeg", "mjpeg")]


@pytest.mark.parametrize(("encoder", "codec"), CODECS)
@pytest.mark.parametrize("size", [(160, 120), (1920, 1080), (98, 74), (4000, 3000)])
def test_the_size_is_that_of_the_picture(encoder: str, codec: str, size: tuple[int, int]) -> None:
    assert picture_size(codec, bytes(encoded(1, codec=encoder, size=size)[0])) == size


@pytest.mark.parametrize(
    ("pixels", "options"),
    [
        ("yuv420p", {"x264-params": "interlaced=1"}),
        ("yuv444p", {"preset": "veryfast", "x264-params": "cqm=jvt"}),
        ("yuv422p", {"preset": "veryfast"}),
        ("yuv420p", {"profile": "baseline", "preset": "ultrafast"}),
    ],
)
def test_other_profiles_are_read_too(pixels: str, options: dict[str, str]) -> None:
    encoder = av.CodecContext.create("libx264", "w")
    assert isinstance(encoder, av.VideoCodecContext)
    encoder.width, encoder.height, encoder.pix_fmt, encoder.framerate = 322, 184, pixels, Fraction(25)
    encoder.options = options
    units = [*encoder.encode(av.VideoFrame(322, 184, pixels)), *encoder.encode(None)]
    assert picture_size("h264", bytes(units[0])) == (322, 184)


@pytest.mark.parametrize(("encoder", "codec"), CODECS)
def test_what_says_no_size_has_none(encoder: str, codec: str) -> None:
    unit = bytes(encoded(2, codec=encoder)[-1])
    assert picture_size(codec, unit) == (None if codec != "mjpeg" else (160, 120))
    assert picture_size(codec, b"") is None


@given(codec=st.sampled_from(["h264", "hevc", "mjpeg"]), data=st.binary(max_size=200), start=st.booleans())
def test_damaged_bytes_never_raise(codec: str, data: bytes, start: bool) -> None:
    head = {"h264": b"\0\0\1\x67", "hevc": b"\0\0\1\x42\1", "mjpeg": b"\xff\xd8\xff"}[codec]
    picture_size(codec, head + data if start else data)
