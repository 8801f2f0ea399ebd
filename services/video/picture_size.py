"""The size that an encoded picture says it has, read without decoding it.

A decoder refuses a picture above its limit without telling the size. People need the size to know what to change.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

START_CODE = re.compile(rb"\x00\x00\x01")
SPS = {"h264": 7, "hevc": 33}  # NAL unit types
SPS_BYTES = 4096  # at most; more than any has
WITH_CHROMA = (100, 110, 122, 244, 44, 83, 86, 118, 128, 138, 139, 134, 135)  # H.264 profiles
MAX_COUNT = 256  # of anything that is listed in an SPS


def picture_size(codec: str, data: bytes) -> tuple[int, int] | None:
    """Width and height that an access unit ("h264" or "hevc" in Annex B form, or "mjpeg") says it has.

    None if it does not say, or is damaged.
    """
    try:
        if codec == "mjpeg":
            return jpeg_size(data)
        for match in START_CODE.finditer(data):
            at = match.end()
            kind = data[at] & 31 if codec == "h264" else data[at] >> 1 & 63
            if kind == SPS.get(codec):
                unit = data[at : at + SPS_BYTES].replace(b"\x00\x00\x03", b"\x00\x00")
                return h264_size(Bits(unit[1:])) if codec == "h264" else hevc_size(Bits(unit[2:]))
    except (IndexError, ValueError):
        pass
    return None


@dataclass(slots=True)
class Bits:
    """Reads bits, the highest of each byte first. IndexError at the end."""

    data: bytes
    position: int = 0

    def read(self, count: int) -> int:
        """An unsigned number of `count` bits."""
        value = 0
        for _ in range(count):
            value = value << 1 | self.data[self.position >> 3] >> (7 - (self.position & 7)) & 1
            self.position += 1
        return value

    def skip(self, count: int) -> None:
        """Pass over bits."""
        self.position += count

    def unsigned(self) -> int:
        """An unsigned Exp-Golomb number."""
        zeros = 0
        while not self.read(1):
            zeros += 1
            if zeros > 32:
                raise ValueError("Exp-Golomb number: got more than 32 leading zeros")
        return (1 << zeros) - 1 + self.read(zeros)

    def signed(self) -> int:
        """A signed Exp-Golomb number."""
        code = self.unsigned()
        return (code + 1) // 2 if code & 1 else -(code // 2)

    def count(self) -> int:
        """How many of something follow."""
        if (number := self.unsigned()) > MAX_COUNT:
            raise ValueError(f"count: got {number}, wanted at most {MAX_COUNT}")
        return number


def h264_size(bits: Bits) -> tuple[int, int]:
    """The size in a sequence parameter set (H.264, 7.3.2.1.1)."""
    profile = bits.read(8)
    bits.skip(16)
    bits.unsigned()
    chroma = 1
    if profile in WITH_CHROMA:
        chroma = bits.unsigned()
        bits.skip(1 if chroma == 3 else 0)
        bits.unsigned()
        bits.unsigned()
        bits.skip(1)
        if bits.read(1):
            for i in range(12 if chroma == 3 else 8):
                if bits.read(1):
                    skip_scaling_list(bits, 16 if i < 6 else 64)
    bits.unsigned()
    order = bits.unsigned()
    if order == 0:
        bits.unsigned()
    elif order == 1:
        bits.skip(1)
        bits.signed()
        bits.signed()
        for _ in range(bits.count()):
            bits.signed()
    bits.unsigned()
    bits.skip(1)
    width, height = 16 * (bits.unsigned() + 1), 16 * (bits.unsigned() + 1)
    fields = 1 if bits.read(1) else 2
    bits.skip(1 if fields == 1 else 2)
    units = (2 if chroma in (1, 2) else 1), (2 if chroma == 1 else 1) * fields
    return cropped(bits, (width, height * fields), units)


def skip_scaling_list(bits: Bits, size: int) -> None:
    """Pass over a scaling list (H.264, 7.3.2.1.1.1)."""
    last = following = 8
    for _ in range(size):
        if following:
            following = (last + bits.signed()) % 256
        last = following or last


def hevc_size(bits: Bits) -> tuple[int, int]:
    """The size in a sequence parameter set (H.265, 7.3.2.2.1)."""
    bits.skip(4)
    num_sub_layers = bits.read(3)
    bits.skip(1 + 88 + 8)
    present = [(bits.read(1), bits.read(1)) for _ in range(num_sub_layers)]
    bits.skip(2 * (8 - num_sub_layers) if num_sub_layers else 0)
    for profile, level in present:
        bits.skip(88 * profile + 8 * level)
    bits.unsigned()
    chroma = bits.unsigned()
    bits.skip(1 if chroma == 3 else 0)
    size = bits.unsigned(), bits.unsigned()
    return cropped(bits, size, (2 if chroma in (1, 2) else 1, 2 if chroma == 1 else 1))


def cropped(bits: Bits, size: tuple[int, int], units: tuple[int, int]) -> tuple[int, int]:
    """The size without the borders that are not shown. They are read next."""
    if not bits.read(1):
        return size
    left, right, top, bottom = (bits.unsigned() for _ in range(4))
    return size[0] - units[0] * (left + right), size[1] - units[1] * (top + bottom)


def jpeg_size(data: bytes) -> tuple[int, int] | None:
    """The size in the frame header of a JPEG."""
    at = 2
    while at + 9 <= len(data):
        if data[at] != 0xFF:
            return None
        marker = data[at + 1]
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            return int.from_bytes(data[at + 7 : at + 9], "big"), int.from_bytes(data[at + 5 : at + 7], "big")
        length = int.from_bytes(data[at + 2 : at + 4], "big")
        at += 1 if marker == 0xFF else 2 + length
    return None
