"""Video on a log: the two ports (writing and reading), the record format, and the strict check of what is read.

One record is one encoded access unit. Key: camera id. Timestamp: capture time in ms. Headers: `codec`,
`keyframe` (0 or 1), `pts`, `time_base` ("1/90000") and `seq`. Value: the access unit. Nothing is ever unpickled.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from services.messages.video import CODECS, VideoPacket

CAMERA_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")
REASON_HEADER = "reason"
DEAD_LETTER_BYTES = 64 * 2**10  # enough to see what it was; the letters must not fill a broker
FIRST_YEAR_MS = 946_684_800_000  # a capture time before 2000 is a missing clock
LAST_YEAR_MS = 7_258_118_400_000  # and one after 2200 a broken one
PREVIEW_CHARACTERS = 40  # of foreign text, in our own messages

Headers = Sequence[tuple[str, bytes]]
Place = tuple[str, int]  # topic, partition


@dataclass(frozen=True, slots=True, kw_only=True)
class RawRecord:
    """A record as it lies on the log, whoever wrote it."""

    key: bytes | None
    value: bytes | None
    headers: Headers
    timestamp_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class VideoRecord:
    """A record that was read: either its packet, or the problem that it has."""

    topic: str
    partition: int
    offset: int
    key: bytes
    raw: bytes
    headers: Headers
    timestamp_ms: int
    packet: VideoPacket | None
    problem: str | None  # what was got and what is wanted

    @property
    def place(self) -> Place:
        """Topic and partition."""
        return self.topic, self.partition


class LogLost(ConnectionError):
    """The broker cannot be reached."""


class VideoLog(Protocol):
    """The writing side. A live camera never waits: what cannot be written in time is dropped and counted."""

    def send(self, packet: VideoPacket) -> None:
        """Write soon, or drop; never blocks for long. ValueError for a packet that readers would refuse."""
        ...

    def flush(self, timeout_s: float) -> bool:
        """Wait until nothing is on its way; False if that took longer."""
        ...

    def close(self) -> None:
        """Write what is on its way, for a short time, and let go."""
        ...


class VideoReader(Protocol):
    """The reading side: one member of a consumer group. One thread uses it; `lag` may be asked from any."""

    def poll(self, timeout_s: float, max_records: int) -> list[VideoRecord]:
        """Next records, in order per partition; empty after `timeout_s` or while the log cannot be reached."""
        ...

    def commit(self, offsets: Mapping[Place, int]) -> None:
        """Note where a restart reads on; written within about a second, and when a partition is given up."""
        ...

    def lost(self) -> set[Place]:
        """Partitions that another member has taken since the last call: forget what was made of them."""
        ...

    def dead_letter(self, record: VideoRecord, reason: str) -> None:
        """Copy a record to the dead letters with a reason; never blocks for long, never raises."""
        ...

    def lag(self) -> int:
        """Records written but not yet read, as far as known."""
        ...

    def close(self) -> None:
        """Write the last commit and leave the group."""
        ...


def encode_packet(packet: VideoPacket, max_packet_bytes: int) -> RawRecord:
    """A packet as a record. ValueError for what `check_record` would refuse."""
    record = RawRecord(
        key=packet.camera.encode(),
        value=packet.data,
        headers=(
            ("codec", packet.codec.encode()),
            ("keyframe", b"1" if packet.keyframe else b"0"),
            ("pts", str(packet.pts).encode()),
            ("time_base", f"{packet.time_base[0]}/{packet.time_base[1]}".encode()),
            ("seq", str(packet.seq).encode()),
        ),
        timestamp_ms=round(packet.captured_s * 1000),
    )
    decode_record(record, max_packet_bytes)
    return record


def check_record(
    record: RawRecord, *, topic: str, partition: int, offset: int, max_packet_bytes: int
) -> VideoRecord:
    """What a reader makes of a record; never raises."""
    packet: VideoPacket | None = None
    problem: str | None = None
    try:
        packet = decode_record(record, max_packet_bytes)
    except ValueError as error:
        problem = str(error)
    return VideoRecord(
        topic=topic,
        partition=partition,
        offset=offset,
        key=record.key or b"",
        raw=record.value or b"",
        headers=record.headers,
        timestamp_ms=record.timestamp_ms,
        packet=packet,
        problem=problem,
    )


def decode_record(record: RawRecord, max_packet_bytes: int) -> VideoPacket:
    """The packet in a record. ValueError saying what was got and what is wanted."""
    data = record.value or b""
    if not data:
        raise ValueError("access unit: got no bytes, wanted at least 1")
    if len(data) > max_packet_bytes:
        raise ValueError(f"access unit: got {len(data)} bytes, wanted at most {max_packet_bytes}")
    if not FIRST_YEAR_MS <= record.timestamp_ms <= LAST_YEAR_MS:
        raise ValueError(f"timestamp: got {record.timestamp_ms}, wanted the capture time in ms since 1970")
    headers = {name: value for name, value in record.headers if len(value) <= 256}
    codec = header_text(headers, "codec")
    if codec not in CODECS:
        raise ValueError(f"codec: got {preview(codec)}, wanted one of {', '.join(CODECS)}")
    keyframe = header_text(headers, "keyframe")
    if keyframe not in ("0", "1"):
        raise ValueError(f"keyframe: got {preview(keyframe)}, wanted 0 or 1")
    return VideoPacket(
        camera=camera_id(record.key or b""),
        captured_s=record.timestamp_ms / 1000,
        codec=codec,
        keyframe=keyframe == "1",
        pts=header_integer(headers, "pts", lowest=-(2**62)),
        time_base=time_base(header_text(headers, "time_base")),
        seq=header_integer(headers, "seq", lowest=0),
        data=data,
    )


def camera_id(key: bytes) -> str:
    """The camera that a record's key names. ValueError when it is no camera id."""
    text = key.decode("utf-8", errors="replace")
    if not CAMERA_ID.fullmatch(text):
        raise ValueError(f"camera id (key): got {preview(text)}, wanted 1 to 128 of A-Z a-z 0-9 . _ -")
    return text


def header_text(headers: Mapping[str, bytes], name: str) -> str:
    """A header's text. ValueError when it is missing (or longer than any that we write)."""
    if name not in headers:
        raise ValueError(f"header {name}: got none, wanted one of at most 256 bytes")
    return headers[name].decode("utf-8", errors="replace")


def header_integer(headers: Mapping[str, bytes], name: str, *, lowest: int) -> int:
    """A header's whole number. ValueError when it is none, or out of what decoders can count."""
    text = header_text(headers, name)
    if not re.fullmatch(r"-?[0-9]{1,19}", text) or not lowest <= int(text) < 2**62:
        raise ValueError(f"header {name}: got {preview(text)}, wanted a whole number from {lowest}")
    return int(text)


def time_base(text: str) -> tuple[int, int]:
    """Seconds per pts unit. ValueError when it is no positive fraction."""
    match = re.fullmatch(r"([0-9]{1,9})/([0-9]{1,9})", text)
    if match is None or not int(match[1]) or not int(match[2]):
        raise ValueError(f"header time_base: got {preview(text)}, wanted a fraction such as 1/90000")
    return int(match[1]), int(match[2])


def preview(text: str) -> str:
    """Foreign text, safe and short enough for a message."""
    short = text if len(text) <= PREVIEW_CHARACTERS else text[:PREVIEW_CHARACTERS] + "…"
    return ascii(short)


def dead_letter_record(record: VideoRecord, reason: str) -> RawRecord:
    """A record as it goes to the dead letters: the start of its bytes, why, and where it came from."""
    known = ("codec", "keyframe", "pts", "time_base", "seq")
    kept = tuple((name, value) for name, value in record.headers if name in known and len(value) <= 256)
    return RawRecord(
        key=record.key[:256],
        value=record.raw[:DEAD_LETTER_BYTES],
        headers=(
            *kept,
            (REASON_HEADER, reason.encode()),
            ("source", f"{record.topic}/{record.partition}/{record.offset}".encode()),
            ("captured_ms", str(record.timestamp_ms).encode()),
            ("num_bytes", str(len(record.raw)).encode()),
        ),
        timestamp_ms=round(time.time() * 1000),  # of the letter: a wild capture time would confuse retention
    )
