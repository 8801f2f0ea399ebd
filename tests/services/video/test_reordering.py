"""Parameter sets of streams that allow reordering, rewritten so that decoders hold nothing back."""

from __future__ import annotations

from typing import Any

import av
import pytest
from av.codec.context import ThreadType
from hypothesis import given
from hypothesis import strategies as st

from services.video.picture_size import picture_size
from services.video.reordering import without_reordering
from tests.services.h264 import encoded

CODECS = [("libx264", "h264"), ("libx265", "hevc")]


def held_back(codec: str, packets: list[bytes]) -> tuple[int, list[bytes]]:
    """How many pictures a decoder still holds after the last packet, and all pictures."""
    context = av.CodecContext.create(codec, "r")
    assert isinstance(context, av.VideoCodecContext)
    context.thread_type = ThreadType.NONE
    shown = [p for data in packets for p in context.decode(av.Packet(data))]
    left = context.decode(None)
    return len(left), [bytes(p.to_ndarray()) for p in (*shown, *left)]


@pytest.mark.parametrize(("encoder", "codec"), CODECS)
@pytest.mark.parametrize("b_frames", [1, 2, 4])
def test_a_decoder_holds_nothing_back_and_shows_the_same(encoder: str, codec: str, b_frames: int) -> None:
    units = [bytes(p) for p in encoded(20, codec=encoder, b_frames=b_frames, use_b_frames=False)]
    before, pictures = held_back(codec, units)
    assert before >= 1
    changed = [without_reordering(codec, unit) for unit in units]
    assert held_back(codec, changed) == (0, pictures)
    assert picture_size(codec, changed[0]) == (160, 120)
    assert [without_reordering(codec, unit) for unit in changed] == changed


FIELDS = {
    "hrd": {"x264-params": "nal-hrd=vbr:vbv-maxrate=500:vbv-bufsize=500"},
    "signal": {
        "x264-params": "colorprim=bt709:transfer=bt709:colormatrix=bt709:videoformat=pal:fullrange=on"
    },
    "chroma": {"x264-params": "chromaloc=2:overscan=show"},
    "sar": {"x264-params": "sar=1234/1001"},
    "scaling": {"x264-params": "cqm=jvt"},
    "interlaced": {"x264-params": "interlaced=1"},
    "no fixed rate": {"x264-params": "force-cfr=0"},
    "main": {"profile": "main"},
}


@pytest.mark.parametrize("options", FIELDS.values(), ids=FIELDS)
def test_whatever_else_the_set_says_stays(options: dict[str, str]) -> None:
    units = [bytes(p) for p in encoded(12, b_frames=2, use_b_frames=False, options=options)]
    before, pictures = held_back("h264", units)
    assert before >= 1
    assert held_back("h264", [without_reordering("h264", unit) for unit in units]) == (0, pictures)


@pytest.mark.parametrize(("encoder", "codec"), [*CODECS, ("mjpeg", "mjpeg")])
def test_a_stream_without_reordering_stays_as_it_is(encoder: str, codec: str) -> None:
    for packet in encoded(3, codec=encoder):
        assert without_reordering(codec, bytes(packet)) == bytes(packet)


@given(codec=st.sampled_from(["h264", "hevc"]), data=st.binary(max_size=200))
def test_damaged_bytes_never_raise(codec: str, data: bytes) -> None:
    head: Any = {"h264": b"\0\0\1\x67", "hevc": b"\0\0\1\x42\1"}[codec]
    assert without_reordering(codec, head + data)[:3] == b"\0\0\1"
