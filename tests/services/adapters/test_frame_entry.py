"""Whatever bytes are in the store, reading them gives a whole frame or DamagedFrame."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.adapters.frame_entry import (
    DTYPES,
    HEADER,
    DamagedFrame,
    pack,
    pack_picture,
    unpack,
    unpack_picture,
)
from services.messages.video import Frame

FRAME = Frame(
    camera="door",
    frame_id="1700000000123-7",
    captured_s=1700000000.123,
    shape=(3, 4),
    dtype="bfloat16",
    visual_tokens=bytes(range(24)),
    jpeg=b"\xff\xd8picture",
)


@given(
    shape=st.tuples(st.integers(0, 5), st.integers(0, 7)),
    dtype=st.sampled_from(sorted(DTYPES)),
    jpeg=st.binary(max_size=50),
    captured_s=st.floats(0, 2**39),
)
def test_round_trip(shape: tuple[int, int], dtype: str, jpeg: bytes, captured_s: float) -> None:
    data = bytes(shape[0] * shape[1] * DTYPES[dtype][1])
    changes = {"shape": shape, "dtype": dtype, "visual_tokens": data, "jpeg": jpeg, "captured_s": captured_s}
    frame = dataclasses.replace(FRAME, **changes)
    assert unpack("door", frame.frame_id, pack(frame)) == dataclasses.replace(frame, jpeg=b"")
    picture = unpack_picture("door", frame.frame_id, pack_picture(frame))
    assert (picture.captured_s, picture.jpeg) == (frame.captured_s, jpeg)


@given(data=st.binary(max_size=200))
def test_random_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(DamagedFrame):
        unpack("door", "1-0", data)
    with pytest.raises(DamagedFrame):
        unpack_picture("door", "1-0", data)


@given(data=st.data())
def test_a_changed_header_never_gives_a_frame_that_contradicts_itself(data: st.DataObject) -> None:
    packed = bytearray(pack(FRAME))
    packed[data.draw(st.integers(0, HEADER.size - 1))] ^= data.draw(st.integers(1, 255))
    try:
        frame = unpack("door", "1-0", bytes(packed))
    except DamagedFrame:
        return
    assert len(frame.visual_tokens) == frame.shape[0] * frame.shape[1] * DTYPES[frame.dtype][1]


@pytest.mark.parametrize("cut", [1, HEADER.size, 5])
def test_a_cut_entry_is_refused(cut: int) -> None:
    with pytest.raises(DamagedFrame):
        unpack("door", "1-0", pack(FRAME)[:-cut])
    with pytest.raises(DamagedFrame):
        unpack_picture("door", "1-0", pack_picture(FRAME)[:-cut])


def test_a_picture_is_no_frame() -> None:
    with pytest.raises(DamagedFrame, match="starts with b'SCPI'"):
        unpack("door", "1-0", pack_picture(FRAME) + bytes(HEADER.size))


def test_a_contradiction_is_refused_when_packed() -> None:
    with pytest.raises(ValueError, match="got 24 bytes, wanted 48 for 3 x 4 float32"):
        pack(dataclasses.replace(FRAME, dtype="float32"))
    with pytest.raises(ValueError, match="dtype: got 'int8'"):
        pack(dataclasses.replace(FRAME, dtype="int8"))
