"""The record format, and one contract for the in-memory log and for a real broker."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from typing import Protocol

import pytest
from confluent_kafka import OFFSET_BEGINNING, Consumer, TopicPartition
from hypothesis import given
from hypothesis import strategies as st

from services.adapters.kafka_video_log import KafkaVideoLog, KafkaVideoReader
from services.local.embedded_servers import Broker
from services.messages.video import VideoPacket
from services.ports.video_log import (
    RawRecord,
    VideoLog,
    VideoReader,
    VideoRecord,
    check_record,
    decode_record,
    encode_packet,
)
from tests.services.adapters.memory_video_log import MemoryBroker, MemoryVideoLog, MemoryVideoReader

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


# -- the record format --


def test_a_packet_survives_its_record() -> None:
    sent = packet(seq=3)
    assert decode_record(encode_packet(sent, LIMIT), LIMIT) == sent


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"key": None}, "camera id"),
        ({"key": b"../../etc"}, "camera id"),
        ({"key": b"x" * 129}, "camera id"),
        ({"key": b"\xff\xfe"}, "camera id"),
        ({"value": None}, "got no bytes"),
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


# -- the contract --


class Writer(VideoLog, Protocol):
    def put(self, record: RawRecord) -> None: ...


class MemoryWriter(MemoryVideoLog):
    def put(self, record: RawRecord) -> None:
        self.broker.put(self.topic, record)


@dataclass
class Log:
    """Makes writers and readers of one log; topics begin with `name`, and end with the test."""

    name: str
    writer: Callable[[str], Writer]
    reader: Callable[..., VideoReader]
    dead_letters: Callable[[int], list[dict[str, bytes]]]  # the headers of the first so many


def memory_log(name: str) -> Log:
    broker = MemoryBroker()
    return Log(
        name,
        lambda topic: MemoryWriter(broker, topic, max_packet_bytes=LIMIT),
        lambda **options: MemoryVideoReader(
            broker,
            topic_pattern=rf"{name}(\..+)?",
            group=name,
            dead_letter_topic=f"{name}.dead",
            max_packet_bytes=LIMIT,
            **options,
        ),
        lambda count: [dict(record.headers) for record in broker.topic(f"{name}.dead")[:count]],
    )


def kafka_log(name: str, servers: str, stack: ExitStack) -> Log:
    return Log(
        name,
        lambda topic: stack.enter_context(closing(KafkaVideoLog(servers, topic, max_packet_bytes=LIMIT))),
        lambda **options: KafkaVideoReader(
            servers,
            topic_pattern=rf"{name}(\..+)?",
            group=name,
            dead_letter_topic=f"{name}.dead",
            max_packet_bytes=LIMIT,
            metadata_max_age_s=0.5,
            **options,
        ),
        lambda count: kafka_headers(servers, f"{name}.dead", count),
    )


def kafka_headers(servers: str, topic: str, count: int) -> list[dict[str, bytes]]:
    """What an independent client finds on a topic's first partition."""
    consumer = Consumer({"bootstrap.servers": servers, "group.id": "unused", "enable.auto.commit": False})
    try:
        consumer.assign([TopicPartition(topic, 0, OFFSET_BEGINNING)])
        messages = consumer.consume(count, timeout=20)
        return [{name: bytes(value) for name, value in m.headers() or []} for m in messages]  # pyright: ignore[reportArgumentType]
    finally:
        consumer.close()


@pytest.fixture(params=["memory", "kafka"])
def log(request: pytest.FixtureRequest, unique: str) -> Iterator[Log]:
    if request.param == "memory":
        yield memory_log(unique)
        return
    broker: Broker = request.getfixturevalue("broker")
    with ExitStack() as stack:
        yield kafka_log(unique, broker.bootstrap_servers, stack)


def read(reader: VideoReader, count: int, timeout_s: float = 20.0) -> list[VideoRecord]:
    """Poll until `count` records came."""
    found: list[VideoRecord] = []
    deadline = time.monotonic() + timeout_s
    while len(found) < count and time.monotonic() < deadline:
        found += reader.poll(0.1, 500)
    assert len(found) == count
    return found


def test_packets_come_in_order_per_camera_from_every_topic(log: Log) -> None:
    one, two = log.writer(log.name), log.writer(f"{log.name}.yard")
    sent = [packet(camera, seq) for seq in range(10) for camera in ("a", "b")]
    for p in sent:
        one.send(p)
        two.send(replace(p, camera=f"yard-{p.camera}"))
    with closing(log.reader()) as reader:
        records = read(reader, 40)
        for camera in ("a", "b"):
            assert [r.packet for r in records if r.key == camera.encode()] == [
                p for p in sent if p.camera == camera
            ]
            assert [r.packet.seq for r in records if r.packet and r.packet.camera == f"yard-{camera}"] == [
                *range(10)
            ]
        assert all(r.problem is None for r in records)
        assert reader.poll(0.3, 500) == []
        assert reader.lag() == 0


def test_a_new_topic_and_a_new_camera_appear_by_themselves(log: Log) -> None:
    writer = log.writer(log.name)
    writer.send(packet("a", 0))
    with closing(log.reader()) as reader:
        read(reader, 1)
        writer.send(packet("b", 0))
        assert read(reader, 1)[0].key == b"b"
        log.writer(f"{log.name}.later").send(packet("c", 0))
        assert read(reader, 1)[0].key == b"c"
        log.writer(f"x{log.name}").send(packet("d", 0))  # matches the pattern at no whole name
        writer.send(packet("a", 1))
        assert read(reader, 1)[0].key == b"a"


def test_a_restart_reads_on_from_the_commit(log: Log) -> None:
    writer = log.writer(log.name)
    for seq in range(12):
        writer.send(packet("a", seq, age_s=5))
    with closing(log.reader()) as reader:
        fifth = read(reader, 12)[5]
        reader.commit({fifth.place: fifth.offset})
    with closing(log.reader()) as reader:
        assert [r.packet.seq for r in read(reader, 7) if r.packet] == [*range(5, 12)]
        assert reader.lag() == 0


def test_a_restart_skips_what_is_stale() -> None:
    log = memory_log("cameras")
    for seq in range(5):
        log.writer("cameras").send(packet("a", seq, age_s=25 - seq))
    with closing(log.reader()) as reader:
        assert reader.poll(0.0, 100) == []
        log.writer("cameras").send(packet("a", 5))
        assert [r.packet.seq for r in read(reader, 1) if r.packet] == [5]


def test_bad_records_are_problems_and_dead_letters(log: Log) -> None:
    writer = log.writer(log.name)
    good = encode_packet(packet("a", 0), LIMIT)
    writer.put(RawRecord(key=b"a", value=b"noise", headers=(), timestamp_ms=good.timestamp_ms))
    writer.put(replace(good, headers=tuple({**dict(good.headers), "codec": b"av1"}.items())))
    writer.send(packet("a", 1))
    with closing(log.reader()) as reader:
        records = read(reader, 3)
        assert [r.problem is None for r in records] == [False, False, True]
        for record in records[:2]:
            reader.dead_letter(record, record.problem or "")
        letters = log.dead_letters(2)
        assert letters[0]["reason"].startswith(b"header codec: got none")
        assert letters[1]["reason"].startswith(b"codec: got 'av1'")
        assert letters[1]["source"] == f"{log.name}/{records[1].partition}/1".encode()
        # The dead letters' topic fits the pattern, yet is not read as video.
        writer.send(packet("a", 2))
        assert [r.packet.seq for r in read(reader, 1) if r.packet] == [2]


def test_two_members_share_and_one_takes_over(log: Log) -> None:
    writer = log.writer(log.name)
    cameras = {f"camera-{i}".encode() for i in range(16)}

    def send(seq: int) -> None:
        for camera in sorted(cameras):
            writer.send(packet(camera.decode(), seq))

    def heard(seq: int, *readers: VideoReader) -> list[set[bytes]]:
        """Which cameras' packet each member reads, polled until all came."""
        keys: list[set[bytes]] = [set() for _ in readers]
        deadline = time.monotonic() + 40
        while set().union(*keys) < cameras and time.monotonic() < deadline:
            for reader, mine in zip(readers, keys, strict=True):
                mine |= {r.key for r in reader.poll(0.3, 100) if r.packet and r.packet.seq == seq}
        return keys

    send(0)
    with closing(log.reader()) as first, closing(log.reader()) as second:
        assert set().union(*heard(0, first, second)) == cameras
        send(1)
        mine, theirs = heard(1, first, second)
        assert mine
        assert theirs
        assert not mine & theirs
        second.close()
        send(2)
        assert heard(2, first) == [cameras]
