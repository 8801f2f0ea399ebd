"""A frame as bytes: a fixed header, the visual tokens, the picture. Checked when read; nothing is unpickled."""

from __future__ import annotations

import struct

from services.messages.video import Frame

MAGIC = b"SCFR"
VERSION = 1
DTYPES = {"float32": (1, 4), "float16": (2, 2), "bfloat16": (3, 2)}  # name: code in the header, bytes a value
DTYPE_NAMES = {code: name for name, (code, _) in DTYPES.items()}

# magic, version, dtype, visual tokens, width, capture time (s), bytes of visual tokens, bytes of the picture
HEADER = struct.Struct("<4sBBIIdII")


class DamagedFrame(ValueError):
    """Bytes that are no valid frame. The message says what is wrong."""


def pack(frame: Frame) -> bytes:
    """The bytes of a frame. ValueError when its shape, dtype and bytes do not match."""
    if frame.dtype not in DTYPES:
        raise ValueError(f"dtype: got {frame.dtype!r}, wanted one of {', '.join(DTYPES)}")
    code, size = DTYPES[frame.dtype]
    num_bytes = frame.shape[0] * frame.shape[1] * size
    if len(frame.visual_tokens) != num_bytes:
        raise ValueError(
            f"visual tokens: got {len(frame.visual_tokens)} bytes, wanted {num_bytes} for "
            f"{frame.shape[0]} x {frame.shape[1]} {frame.dtype}"
        )
    header = HEADER.pack(MAGIC, VERSION, code, *frame.shape, frame.captured_s, num_bytes, len(frame.jpeg))
    return b"".join((header, frame.visual_tokens, frame.jpeg))


def unpack(camera: str, frame_id: str, data: bytes) -> Frame:
    """The frame in `data`. DamagedFrame unless all fields are consistent."""
    if len(data) < HEADER.size:
        raise DamagedFrame(f"{len(data)} bytes are shorter than a header")
    magic, version, code, rows, width, captured_s, num_bytes, num_jpeg = HEADER.unpack_from(data)
    if magic != MAGIC:
        raise DamagedFrame(f"it starts with {magic!r}, not with {MAGIC!r}")
    if version != VERSION:
        raise DamagedFrame(f"its version is {version}, this service reads {VERSION}")
    if code not in DTYPE_NAMES:
        raise DamagedFrame(f"its dtype is {code}, wanted one of {sorted(DTYPE_NAMES)}")
    dtype = DTYPE_NAMES[code]
    if rows * width * DTYPES[dtype][1] != num_bytes:
        raise DamagedFrame(f"{num_bytes} bytes are not {rows} x {width} {dtype}")
    if len(data) != HEADER.size + num_bytes + num_jpeg:
        raise DamagedFrame(f"it has {len(data)} bytes, its header says {HEADER.size + num_bytes + num_jpeg}")
    if not 0 <= captured_s < 2**40:  # also refuses nan
        raise DamagedFrame(f"its capture time is {captured_s}")
    picture = HEADER.size + num_bytes
    return Frame(
        camera=camera,
        frame_id=frame_id,
        captured_s=captured_s,
        shape=(rows, width),
        dtype=dtype,
        visual_tokens=data[HEADER.size : picture],
        jpeg=data[picture:],
    )
