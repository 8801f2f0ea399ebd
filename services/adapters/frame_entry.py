"""A frame's visual tokens and its picture as bytes, each behind a header. Checked when read; nothing is unpickled."""

from __future__ import annotations

import struct

from services.messages.video import Frame, Picture

FRAME_MAGIC, PICTURE_MAGIC = b"SCFR", b"SCPI"
VERSION = 2
DTYPES = {"float32": (1, 4), "float16": (2, 2), "bfloat16": (3, 2)}  # name: code in the header, bytes a value
DTYPE_NAMES = {code: name for name, (code, _) in DTYPES.items()}

# magic, version, dtype, visual tokens, width, capture time (s), bytes of visual tokens
HEADER = struct.Struct("<4sBBIIdI")
# magic, version, capture time (s), bytes of the JPEG
PICTURE_HEADER = struct.Struct("<4sBdI")


class DamagedFrame(ValueError):
    """Bytes that are no valid frame or picture. The message says what is wrong."""


def pack(frame: Frame) -> bytes:
    """The visual tokens of a frame. ValueError when its shape, dtype and bytes do not match."""
    if frame.dtype not in DTYPES:
        raise ValueError(f"dtype: got {frame.dtype!r}, wanted one of {', '.join(DTYPES)}")
    code, size = DTYPES[frame.dtype]
    num_bytes = frame.shape[0] * frame.shape[1] * size
    if len(frame.visual_tokens) != num_bytes:
        raise ValueError(
            f"visual tokens: got {len(frame.visual_tokens)} bytes, wanted {num_bytes} for "
            f"{frame.shape[0]} x {frame.shape[1]} {frame.dtype}"
        )
    header = HEADER.pack(FRAME_MAGIC, VERSION, code, *frame.shape, frame.captured_s, num_bytes)
    return header + frame.visual_tokens


def pack_picture(frame: Frame) -> bytes:
    """The picture of a frame."""
    return PICTURE_HEADER.pack(PICTURE_MAGIC, VERSION, frame.captured_s, len(frame.jpeg)) + frame.jpeg


def unpack(camera: str, frame_id: str, data: bytes) -> Frame:
    """The frame in `data`, without its picture. DamagedFrame unless all fields are consistent."""
    _check_start(data, HEADER, FRAME_MAGIC)
    _, _, code, rows, width, captured_s, num_bytes = HEADER.unpack_from(data)
    if code not in DTYPE_NAMES:
        raise DamagedFrame(f"its dtype is {code}, wanted one of {sorted(DTYPE_NAMES)}")
    dtype = DTYPE_NAMES[code]
    if rows * width * DTYPES[dtype][1] != num_bytes:
        raise DamagedFrame(f"{num_bytes} bytes are not {rows} x {width} {dtype}")
    _check_rest(data, HEADER.size + num_bytes, captured_s)
    return Frame(
        camera=camera,
        frame_id=frame_id,
        captured_s=captured_s,
        shape=(rows, width),
        dtype=dtype,
        visual_tokens=data[HEADER.size :],
    )


def unpack_picture(camera: str, frame_id: str, data: bytes) -> Picture:
    """The picture in `data`. DamagedFrame unless all fields are consistent."""
    _check_start(data, PICTURE_HEADER, PICTURE_MAGIC)
    _, _, captured_s, num_bytes = PICTURE_HEADER.unpack_from(data)
    _check_rest(data, PICTURE_HEADER.size + num_bytes, captured_s)
    return Picture(camera=camera, frame_id=frame_id, captured_s=captured_s, jpeg=data[PICTURE_HEADER.size :])


def _check_start(data: bytes, header: struct.Struct, magic: bytes) -> None:
    if len(data) < header.size:
        raise DamagedFrame(f"{len(data)} bytes are shorter than a header")
    if data[:4] != magic:
        raise DamagedFrame(f"it starts with {data[:4]!r}, not with {magic!r}")
    if data[4] != VERSION:
        raise DamagedFrame(f"its version is {data[4]}, this service reads {VERSION}")


def _check_rest(data: bytes, num_bytes: int, captured_s: float) -> None:
    if len(data) != num_bytes:
        raise DamagedFrame(f"it has {len(data)} bytes, its header says {num_bytes}")
    if not 0 <= captured_s < 2**40:  # also refuses nan
        raise DamagedFrame(f"its capture time is {captured_s}")
