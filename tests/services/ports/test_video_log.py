"""One contract for every video log, held against the twin in memory and a real broker."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from typing import Protocol

import pytest
from confluent_kafka import OFFSET_BEGINNING, Consumer, TopicPartition

from services.adapters.kafka_reader import KafkaVideoReader
from services.adapters.kafka_writer import KafkaVideoWriter
from services.local.embedded_servers import Broker
from services.messages.video import VideoPacket
from services.messages.video_record import RawRecord, VideoRecord, encode_packet
from services.ports.video_log import VideoReader, VideoWriter
from tests.services.adapters.memory_video_log import MemoryBroker, MemoryVideoReader, MemoryVideoWriter

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


class AnyWriter(VideoWriter, Protocol):
    """A writer that can also write damaged records."""

    def send_record(self, record: RawRecord) -> None: ...


@dataclass
class Log:
    """Creates writers and readers of one log. Topics start with `name` and live as long as the test."""

    name: str
    writer: Callable[[str], AnyWriter]
    reader: Callable[..., VideoReader]
    dead_letters: Callable[[int], list[dict[str, bytes]]]  # headers of the first `count`


def memory_log(name: str) -> Log:
    broker = MemoryBroker()
    return Log(
        name,
        lambda topic: MemoryVideoWriter(broker, topic, max_packet_bytes=LIMIT),
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


def kafka_log(name: str, servers: str, stack: ExitStack, *, alone: bool) -> Log:
    return Log(
        name,
        lambda topic: stack.enter_context(closing(KafkaVideoWriter(servers, topic, max_packet_bytes=LIMIT))),
        lambda **options: KafkaVideoReader(
            servers,
            topic_pattern=rf"{name}(\..+)?",
            group=name,
            dead_letter_topic=f"{name}.dead",
            max_packet_bytes=LIMIT,
            metadata_max_age_s=0.5,
            alone=alone,
            **options,
        ),
        lambda count: kafka_headers(servers, f"{name}.dead", count),
    )


def kafka_headers(servers: str, topic: str, count: int) -> list[dict[str, bytes]]:
    """The headers that an independent client reads from the first partition of a topic."""
    consumer = Consumer({"bootstrap.servers": servers, "group.id": "unused", "enable.auto.commit": False})
    try:
        consumer.assign([TopicPartition(topic, 0, OFFSET_BEGINNING)])
        messages = consumer.consume(count, timeout=20)
        return [{name: bytes(value) for name, value in m.headers() or []} for m in messages]  # pyright: ignore[reportArgumentType]
    finally:
        consumer.close()


@pytest.fixture(params=["memory", "kafka", "kafka-alone"])
def log(request: pytest.FixtureRequest, unique: str) -> Iterator[Log]:
    if request.param == "memory":
        yield memory_log(unique)
        return
    broker: Broker = request.getfixturevalue("broker")
    with ExitStack() as stack:
        yield kafka_log(unique, broker.bootstrap_servers, stack, alone=request.param == "kafka-alone")


def read(reader: VideoReader, count: int, timeout_s: float = 20.0) -> list[VideoRecord]:
    """Poll until `count` records have come."""
    found: list[VideoRecord] = []
    deadline = time.monotonic() + timeout_s
    while len(found) < count and time.monotonic() < deadline:
        found += reader.poll(0.1, 500)
    assert len(found) == count
    return found


def test_packets_arrive_in_order_per_camera_from_every_topic(log: Log) -> None:
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
        log.writer(f"x{log.name}").send(packet("d", 0))  # its whole name does not match the pattern
        writer.send(packet("a", 1))
        assert read(reader, 1)[0].key == b"a"


def test_a_restart_continues_from_the_commit(log: Log) -> None:
    writer = log.writer(log.name)
    for seq in range(12):
        writer.send(packet("a", seq, age_s=5))
    with closing(log.reader()) as reader:
        fifth = read(reader, 12)[5]
        reader.commit({fifth.topic_partition: fifth.offset})
    with closing(log.reader()) as reader:
        assert [r.packet.seq for r in read(reader, 7) if r.packet] == [*range(5, 12)]
        assert reader.lag() == 0


def test_a_restart_skips_stale_records() -> None:
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
    writer.send_record(RawRecord(key=b"a", value=b"noise", headers=(), timestamp_ms=good.timestamp_ms))
    writer.send_record(replace(good, headers=tuple({**dict(good.headers), "codec": b"av1"}.items())))
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
        # The dead-letter topic matches the pattern, but is not read as video.
        writer.send(packet("a", 2))
        assert [r.packet.seq for r in read(reader, 1) if r.packet] == [2]


@pytest.mark.parametrize("log", ["memory", "kafka"], indirect=True)
def test_two_members_share_and_one_takes_over(log: Log) -> None:
    writer = log.writer(log.name)
    cameras = {f"camera-{i}".encode() for i in range(16)}

    def send(seq: int) -> None:
        for camera in sorted(cameras):
            writer.send(packet(camera.decode(), seq))

    def received(seq: int, *readers: VideoReader) -> list[set[bytes]]:
        """The cameras whose packets each member reads, polled until all have come."""
        keys: list[set[bytes]] = [set() for _ in readers]
        deadline = time.monotonic() + 40
        while set().union(*keys) < cameras and time.monotonic() < deadline:
            for reader, mine in zip(readers, keys, strict=True):
                mine |= {r.key for r in reader.poll(0.3, 100) if r.packet and r.packet.seq == seq}
        return keys

    send(0)
    with closing(log.reader()) as first, closing(log.reader()) as second:
        assert set().union(*received(0, first, second)) == cameras
        send(1)
        mine, theirs = received(1, first, second)
        assert mine
        assert theirs
        assert not mine & theirs
        second.close()
        send(2)
        assert received(2, first) == [cameras]
