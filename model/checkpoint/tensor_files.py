"""Safetensors files, read and written as bytes. Headers are held in memory, tensors are copied in chunks.

The format: 8 bytes little-endian header length, a JSON header {name: {dtype, shape, data_offsets}}, then the data.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from io import BytesIO
from math import prod
from pathlib import Path
from typing import Any

CHUNK_BYTES = 1 << 22
WIDTHS = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """The bytes of a tensor, in a file or in memory."""

    source: Path | bytes
    dtype: str  # as safetensors names it: F32, BF16, ...
    shape: tuple[int, ...]
    start: int  # byte offset in the source
    num_bytes: int

    def chunks(self) -> Iterator[bytes]:
        """The tensor's bytes, a few megabytes at a time."""
        with self.source.open("rb") if isinstance(self.source, Path) else BytesIO(self.source) as file:
            file.seek(self.start)
            num_left = self.num_bytes
            while num_left:
                data = file.read(min(CHUNK_BYTES, num_left))
                if not data:
                    raise ValueError(f"{self.source} is cut short")
                num_left -= len(data)
                yield data


def stored_tensors(folder: Path) -> dict[str, StoredTensor]:
    """The tensors of all safetensors files of a folder, by name.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a file is damaged or cut short.
    """
    files = sorted(folder.glob("model*.safetensors")) or sorted(folder.glob("*.safetensors"))
    if not files:
        raise FileNotFoundError(f"{folder} holds no weights: wanted model.safetensors or its shards")
    return {name: tensor for file in files for name, tensor in _read_header(file)}


def _read_header(file: Path) -> Iterable[tuple[str, StoredTensor]]:
    size = file.stat().st_size
    try:
        with file.open("rb") as reader:
            (length,) = struct.unpack("<Q", reader.read(8))
            if length > min(size - 8, 1 << 28):
                raise ValueError("its header is longer than itself")
            header: dict[str, Any] = json.loads(reader.read(length))
    except (struct.error, ValueError) as error:
        raise ValueError(f"{file} is no safetensors file, or it is damaged: {error}") from error
    header.pop("__metadata__", None)
    for name, entry in header.items():
        first, last = entry["data_offsets"]
        shape = tuple(entry["shape"])
        if 8 + length + last > size:
            raise ValueError(f"{file} is cut short: tensor {name} ends behind it")
        if entry["dtype"] in WIDTHS and last - first != prod(shape) * WIDTHS[entry["dtype"]]:
            raise ValueError(f"{file} is damaged: tensor {name} has {last - first} bytes for shape {shape}")
        yield name, StoredTensor(file, entry["dtype"], shape, 8 + length + first, last - first)


def write_tensors(file: Path, tensors: dict[str, StoredTensor]) -> Iterator[int]:
    """Write one safetensors file; yields the number of bytes after each chunk, for a progress display."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    start = 0
    for name, tensor in tensors.items():
        offsets = [start, start + tensor.num_bytes]
        header[name] = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": offsets}
        start += tensor.num_bytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # aligns the data to 8 bytes
    with file.open("wb") as writer:
        writer.write(struct.pack("<Q", len(text)) + text)
        for tensor in tensors.values():
            for data in tensor.chunks():
                writer.write(data)
                yield len(data)
