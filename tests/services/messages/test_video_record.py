"""A packet survives its record, and everything else is refused with a reason."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.messages.video import VideoPacket
from services.messages.video_record import RawRecord, check_record, decode_record, encode_packet

LIMIT = 100_000


def packet(camera: str = "door", seq: int = 0, *, age_s: float = 0.0, data: bytes = b"unit") -> VideoPacket:
    return VideoPacket(
        camera=camera,
        captured_s=round(time.time() - age_s, 3),
        codec="h264",
        keyframe=seq % 5 == 0,
        pts=seq * 3000,
        time_base=(1, 90000),
        seq=seq,
        data=data,
    )


def test_a_packet_survives_its_record() -> None:
    sent = packet(seq=3)
    assert decode_record(encode_packet(sent, LIMIT), LIMIT) == sent
    turned = replace(sent, rotation=270)
    assert decode_record(encode_packet(turned, LIMIT), LIMIT) == turned
    named = replace(sent, name="🚪" * 200)
    assert decode_record(encode_packet(named, LIMIT), LIMIT) == named


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"key": None}, "no key: got a record without a key"),
        ({"key": b""}, "camera id (key): got ''"),
        ({"key": b"../../etc"}, "camera id"),
        ({"key": b"x" * 129}, "camera id"),
        ({"key": b"\xff\xfe"}, "camera id"),
        ({"key": b"clip-1"}, "camera id (key): got 'clip-1', wanted another start: clip- is reserved"),
        ({"name": b""}, "camera name"),
        ({"name": b"a\nb"}, "camera name"),
        ({"name": b"x" * 201}, "camera name: got 201 characters, wanted 1 to 200"),
        ({"value": None}, "tombstone: got a record without a value"),
        ({"value": None, "key": None, "codec": None}, "tombstone"),
        ({"value": b""}, "got no bytes"),
        ({"value": b"x" * (LIMIT + 1)}, f"wanted at most {LIMIT}"),
        ({"timestamp_ms": -1}, "timestamp"),
        ({"timestamp_ms": 2**62}, "timestamp"),
        ({"codec": b"vp8"}, "codec: got 'vp8', wanted one of h264, hevc, mjpeg"),
        ({"codec": None}, "header codec: got none"),
        ({"keyframe": b"yes"}, "keyframe"),
        ({"pts": b"1e9"}, "header pts"),
        ({"pts": b"9" * 19}, "header pts"),
        ({"time_base": b"1/0"}, "time_base"),
        ({"time_base": b"90000"}, "time_base"),
        ({"seq": b"-1"}, "header seq"),
        ({"seq": b"\xd9\xa1"}, "header seq"),
        ({"seq": b"1" * 300}, "header seq"),
        ({"rotation": b"45"}, "header rotation: got '45', wanted one of 0, 90, 180, 270"),
        ({"rotation": b""}, "header rotation"),
    ],
)
def test_what_is_no_packet_is_told_clearly(change: dict[str, bytes | int | None], problem: str) -> None:
    good = encode_packet(packet(), LIMIT)
    headers = {**dict(good.headers), **{k: v for k, v in change.items() if isinstance(v, bytes)}}
    headers = {k: v for k, v in headers.items() if change.get(k, b"") is not None}
    record = RawRecord(
        key=change.get("key", good.key),  # pyright: ignore[reportArgumentType]
        value=change.get("value", good.value),  # pyright: ignore[reportArgumentType]
        headers=tuple((k, v) for k, v in headers.items() if k not in ("key", "value")),
        timestamp_ms=change.get("timestamp_ms", good.timestamp_ms),  # pyright: ignore[reportArgumentType]
    )
    read = check_record(record, topic="cameras", partition=0, offset=0, max_packet_bytes=LIMIT)
    assert read.packet is None
    assert read.problem is not None
    assert problem in read.problem


@given(
    key=st.none() | st.binary(max_size=200),
    value=st.none() | st.binary(max_size=200),
    headers=st.lists(
        st.tuples(
            st.sampled_from(["codec", "keyframe", "pts", "time_base", "seq", "other"]),
            st.binary(max_size=300),
        ),
        max_size=8,
    ),
    timestamp_ms=st.integers(min_value=-(2**63), max_value=2**63 - 1),
)
def test_no_record_raises(
    key: bytes | None, value: bytes | None, headers: list[tuple[str, bytes]], timestamp_ms: int
) -> None:
    record = RawRecord(key=key, value=value, headers=headers, timestamp_ms=timestamp_ms)
    read = check_record(record, topic="t", partition=0, offset=0, max_packet_bytes=100)
    assert (read.packet is None) != (read.problem is None)


def test_a_wrong_packet_is_not_even_written() -> None:
    with pytest.raises(ValueError, match="camera id"):
        encode_packet(packet("front door"), LIMIT)
    with pytest.raises(ValueError, match="codec"):
        encode_packet(replace(packet(), codec="av1"), LIMIT)
