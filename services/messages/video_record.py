"""A video packet as a Kafka record: its format, and the strict check of what is read.

One record is one encoded access unit. Key: camera id. Timestamp: capture time in ms. Headers: `codec`,
`keyframe` (0 or 1), `pts`, `time_base` ("1/90000") and `seq`. Optional headers: `rotation` (0, 90, 180 or 270 degrees
clockwise, by which the picture is turned) and `name` (what people call the camera, in UTF-8). Value: the access unit.
Nothing is ever unpickled.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from services.messages.camera_name import CAMERA_ID, PRIVATE_PREFIX, WANTED_ID, check_camera_name, preview
from services.messages.video import CODECS, VideoPacket

MAX_HEADER_BYTES = 256
MAX_NAME_BYTES = 1024
ROTATIONS = ("0", "90", "180", "270")
REASON_HEADER = "reason"
DEAD_LETTER_BYTES = 64 * 2**10  # enough to recognise a packet; dead letters must not fill a broker
EARLIEST_MS = 946_684_800_000  # 1 January 2000: an earlier capture time means that the clock was never set
LATEST_MS = 7_258_118_400_000  # 1 January 2200

Headers = Sequence[tuple[str, bytes]]
Partition = tuple[str, int]  # topic, and number of the partition


@dataclass(frozen=True, slots=True, kw_only=True)
class RawRecord:
    """A record as stored on the log, not yet checked."""

    key: bytes | None
    value: bytes | None
    headers: Headers
    timestamp_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class VideoRecord:
    """A record that was read and checked: it has either a packet or a problem."""

    topic: str
    partition: int
    offset: int
    key: bytes
    raw: bytes
    headers: Headers
    timestamp_ms: int
    packet: VideoPacket | None
    problem: str | None  # what was got and what was wanted

    @property
    def topic_partition(self) -> Partition:
        """Topic, and number of the partition."""
        return self.topic, self.partition


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
            *(() if packet.rotation is None else (("rotation", str(packet.rotation).encode()),)),
            *((("name", packet.name.encode()),) if packet.name else ()),
        ),
        timestamp_ms=round(packet.captured_s * 1000),
    )
    decode_record(record, max_packet_bytes)
    return record


def check_record(
    record: RawRecord, *, topic: str, partition: int, offset: int, max_packet_bytes: int
) -> VideoRecord:
    """A record with its packet or its problem. Never raises."""
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
    """The packet in a record. ValueError says what was got and what was wanted."""
    if record.value is None:
        raise ValueError("tombstone: got a record without a value, wanted an access unit")
    if record.key is None:
        raise ValueError("no key: got a record without a key, wanted the camera's id")
    data = record.value
    if not data:
        raise ValueError("access unit: got no bytes, wanted at least 1")
    if len(data) > max_packet_bytes:
        raise ValueError(f"access unit: got {len(data)} bytes, wanted at most {max_packet_bytes}")
    if not EARLIEST_MS <= record.timestamp_ms <= LATEST_MS:
        raise ValueError(f"timestamp: got {record.timestamp_ms}, wanted the capture time in ms since 1970")
    headers = {name: value for name, value in record.headers if len(value) <= header_limit(name)}
    codec = header_text(headers, "codec")
    if codec not in CODECS:
        raise ValueError(f"codec: got {preview(codec)}, wanted one of {', '.join(CODECS)}")
    keyframe = header_text(headers, "keyframe")
    if keyframe not in ("0", "1"):
        raise ValueError(f"keyframe: got {preview(keyframe)}, wanted 0 or 1")
    return VideoPacket(
        camera=parse_camera_id(record.key),
        captured_s=record.timestamp_ms / 1000,
        codec=codec,
        keyframe=keyframe == "1",
        pts=header_integer(headers, "pts", lowest=-(2**62)),
        time_base=parse_time_base(header_text(headers, "time_base")),
        seq=header_integer(headers, "seq", lowest=0),
        data=data,
        rotation=parse_rotation(headers),
        name=check_camera_name(header_text(headers, "name")) if "name" in headers else "",
    )


def header_limit(name: str) -> int:
    """The most bytes of a header that are read."""
    return MAX_NAME_BYTES if name == "name" else MAX_HEADER_BYTES


def parse_rotation(headers: Mapping[str, bytes]) -> int | None:
    """Degrees clockwise to turn the picture, or None without the header. ValueError for anything else."""
    if "rotation" not in headers:
        return None
    text = header_text(headers, "rotation")
    if text not in ROTATIONS:
        raise ValueError(f"header rotation: got {preview(text)}, wanted one of {', '.join(ROTATIONS)}")
    return int(text)


def parse_camera_id(key: bytes) -> str:
    """The camera id in a record's key. ValueError for an invalid id."""
    text = key.decode("utf-8", errors="replace")
    if not CAMERA_ID.fullmatch(text):
        raise ValueError(f"camera id (key): got {preview(text)}, wanted {WANTED_ID}")
    if text.startswith(PRIVATE_PREFIX):
        raise ValueError(
            f"camera id (key): got {preview(text)}, wanted another start: {PRIVATE_PREFIX} is reserved"
        )
    return text


def header_text(headers: Mapping[str, bytes], name: str) -> str:
    """A header's text. ValueError when it is missing or too long."""
    if name not in headers:
        raise ValueError(f"header {name}: got none, wanted one of at most 256 bytes")
    return headers[name].decode("utf-8", errors="replace")


def header_integer(headers: Mapping[str, bytes], name: str, *, lowest: int) -> int:
    """A header's whole number. ValueError when it is not one, or out of the decoders' range."""
    text = header_text(headers, name)
    if not re.fullmatch(r"-?[0-9]{1,19}", text) or not lowest <= int(text) < 2**62:
        raise ValueError(f"header {name}: got {preview(text)}, wanted a whole number from {lowest}")
    return int(text)


def parse_time_base(text: str) -> tuple[int, int]:
    """Seconds per pts unit. ValueError for anything but a positive fraction."""
    match = re.fullmatch(r"([0-9]{1,9})/([0-9]{1,9})", text)
    if match is None or not int(match[1]) or not int(match[2]):
        raise ValueError(f"header time_base: got {preview(text)}, wanted a fraction such as 1/90000")
    return int(match[1]), int(match[2])


def dead_letter_record(record: VideoRecord, reason: str) -> RawRecord:
    """The dead letter of a record: the start of its bytes, the reason, and its source."""
    known = ("codec", "keyframe", "pts", "time_base", "seq", "rotation", "name")
    kept = tuple(
        (name, value) for name, value in record.headers if name in known and len(value) <= header_limit(name)
    )
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
        timestamp_ms=round(
            time.time() * 1000
        ),  # now: a wrong capture time would confuse the broker's retention
    )
