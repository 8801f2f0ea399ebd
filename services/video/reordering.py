"""Sequence parameter sets that promise display order, for streams that allow reordering and have none.

Many encoders allow B-frames and never make one. A decoder then holds back as many pictures as the stream allows.
"""

from __future__ import annotations

import re

from services.video.picture_size import SPS, SPS_BYTES, Bits, h264_size, hevc_size

EMULATED = re.compile(rb"\x00\x00(?=[\x00-\x03])")  # would look like a start code (H.264, 7.4.1)
EXTENDED_SAR = 255
SPLIT = re.compile(rb"(\x00\x00\x01)")


def without_reordering(codec: str, data: bytes) -> bytes:
    """An access unit ("h264" or "hevc", Annex B) whose parameter sets say that no picture has to wait for a later one.

    Unchanged if they say so already or say nothing, and for other codecs.
    """
    kind = SPS.get(codec)
    if kind is None:
        return data
    parts = SPLIT.split(data)
    for number in range(2, len(parts), 2):
        unit = parts[number]
        is_short = 0 < len(unit) <= SPS_BYTES
        if is_short and (unit[0] & 31 if codec == "h264" else unit[0] >> 1 & 63) == kind:
            parts[number] = _in_order(codec, unit)
    return b"".join(parts)


def _in_order(codec: str, unit: bytes) -> bytes:
    """The NAL unit of a parameter set, with 0 pictures to be reordered; unchanged if it is damaged."""
    bits = Bits(unit.replace(b"\x00\x00\x03", b"\x00\x00"))
    try:
        places = _h264_places(bits) if codec == "h264" else _hevc_places(bits)
    except (IndexError, ValueError):
        return unit
    if not places:
        return unit
    text = "".join(f"{byte:08b}" for byte in bits.data)
    for start, end in reversed(places):
        text = text[:start] + "1" + text[end:]  # "1" is 0 as an Exp-Golomb number
    text = text[: text.rindex("1") + 1]  # with the stop bit
    text += "0" * (-len(text) % 8)
    changed = int(text, 2).to_bytes(len(text) // 8, "big")
    return EMULATED.sub(b"\x00\x00\x03", changed)


def _number(bits: Bits) -> list[tuple[int, int]]:
    """Where the next Exp-Golomb number stands, if it is not 0."""
    start = bits.position
    waits = bits.unsigned() > 0
    return [(start, bits.position)] if waits else []


def _h264_places(bits: Bits) -> list[tuple[int, int]]:
    """Where max_num_reorder_frames stands, if it is not 0 (H.264, E.1.1)."""
    bits.skip(8)
    h264_size(bits)
    if not bits.read(1):
        return []
    if bits.read(1) and bits.read(8) == EXTENDED_SAR:
        bits.skip(32)
    bits.skip(bits.read(1))  # overscan
    if bits.read(1):  # the kind of signal
        bits.skip(4)
        bits.skip(24 * bits.read(1))
    if bits.read(1):  # where the chroma samples lie
        bits.unsigned()
        bits.unsigned()
    bits.skip(65 * bits.read(1))  # timing
    has_hrd = [_skip_hrd(bits) for _ in ("NAL", "VCL")]
    bits.skip(2 if any(has_hrd) else 1)  # whether it is for low delay; whether times of pictures follow
    if not bits.read(1):
        return []
    bits.skip(1)
    for _ in range(4):
        bits.unsigned()
    return _number(bits)


def _skip_hrd(bits: Bits) -> bool:
    """Pass over the parameters of the reference decoder's buffer, and say whether there are any (H.264, E.1.2)."""
    if not bits.read(1):
        return False
    num = bits.count() + 1
    bits.skip(8)
    for _ in range(num):
        bits.unsigned()
        bits.unsigned()
        bits.skip(1)
    bits.skip(20)
    return True


def _hevc_places(bits: Bits) -> list[tuple[int, int]]:
    """Where sps_max_num_reorder_pics stands for each sub-layer in which it is not 0 (H.265, 7.3.2.2.1)."""
    bits.skip(16)
    num_sub_layers = (bits.data[2] >> 1 & 7) + 1
    hevc_size(bits)
    for _ in range(3):  # bit depths, and the bits of an order count
        bits.unsigned()
    places: list[tuple[int, int]] = []
    for _ in range(num_sub_layers if bits.read(1) else 1):
        bits.unsigned()
        places += _number(bits)
        bits.unsigned()
    return places
