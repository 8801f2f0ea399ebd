"""Batches as producers in the field write them, and batches that cannot be read."""

from __future__ import annotations

import gzip
import logging
import struct
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import cramjam
import kafka
import kafka.record.default_records as kafka_records
import lz4.frame
import pytest
import zstandard
from confluent_kafka import Producer
from crc32c import crc32c
from kafka.record.memory_records import MemoryRecords
from kafka.structs import TopicPartition

from services.adapters.kafka_batches import FetchGuard, ReadableRecords, SkippedBatches
from services.adapters.kafka_reader import KafkaVideoReader
from services.adapters.kafka_writer import KafkaVideoWriter
from services.local.embedded_servers import Broker
from services.messages.video_record import encode_packet
from tests.services.kafka_packets import PACKET

LIMIT = 100_000
kafka_client: Any = kafka  # type checkers carry the stubs of version 2
builder: Any = kafka_records.DefaultRecordBatchBuilder
CODECS: dict[str, tuple[int, Callable[[bytes], bytes]]] = {
    "gzip": (1, gzip.compress),
    "snappy": (2, lambda data: bytes(cramjam.snappy.compress_raw(data))),
    "lz4": (3, lz4.frame.compress),
    "zstd": (4, lambda data: zstandard.ZstdCompressor().compress(data)),
}


def batch(offset: int, values: Sequence[bytes], *, headers: Sequence[tuple[str, bytes]] = ()) -> bytes:
    """An uncompressed batch of version 2."""
    made = builder(2, 0, False, -1, -1, -1, 2**24)
    for i, value in enumerate(values):
        made.append(i, 1_800_000_000_000, b"door", value, list(headers))
    return based(bytes(made.build()), offset)


def based(data: bytes, offset: int) -> bytes:
    return struct.pack(">q", offset) + data[8:]


def compressed(data: bytes, codec: int, compress: Callable[[bytes], bytes]) -> bytes:
    """The batch with its records compressed, and its checksum right."""
    attributes, records = struct.unpack_from(">h", data, 21)[0], compress(data[61:])
    tail = struct.pack(">h", attributes & ~7 | codec) + data[23:61] + records
    head = struct.pack(">qiibI", struct.unpack_from(">q", data)[0], 9 + len(tail), -1, 2, crc32c(tail))
    return head + tail


def read(data: bytes, position: int = 0) -> tuple[list[int], Any, SkippedBatches]:
    """The offsets that are read; the records' end; what was skipped."""
    skipped = SkippedBatches()
    records: Any = ReadableRecords(
        position,
        TopicPartition("cameras", 3),
        MemoryRecords(data),
        max_batch_bytes=LIMIT,
        on_skip=skipped.add,
    )
    return [record.offset for record in records.take(1000)], records, skipped


@pytest.mark.parametrize("name", CODECS)
def test_each_codec_is_read(name: str) -> None:
    data = compressed(batch(5, [b"one", b"two"]), *CODECS[name])
    offsets, records, skipped = read(data + batch(7, [b"three"]), 5)
    assert offsets == [5, 6, 7]
    assert records.next_fetch_offset == 8
    assert not skipped.counts


def test_snappy_in_the_blocks_of_the_java_clients_is_read() -> None:
    def blocks(data: bytes) -> bytes:
        parts = [bytes(cramjam.snappy.compress_raw(data[i : i + 20])) for i in range(0, len(data), 20)]
        header = b"\x82SNAPPY\x00" + struct.pack(">ii", 1, 1)
        return header + b"".join(struct.pack(">i", len(part)) + part for part in parts)

    assert read(compressed(batch(0, [b"value" * 9]), 2, blocks))[0] == [0]


def bomb(name: str) -> bytes:
    return compressed(batch(3, [b"\0" * (20 * LIMIT)]), *CODECS[name])


UNREADABLE: dict[str, tuple[str, bytes]] = {
    **{f"{name} bomb": ("too_large", bomb(name)) for name in CODECS},
    **{
        f"{name} noise": ("damaged", compressed(batch(3, [b"x"]), codec, lambda _: b"\x93noise" * 9))
        for name, (codec, _) in CODECS.items()
    },
    **{
        f"{name} cut short": (
            "damaged",
            compressed(batch(3, [b"x" * 99]), codec, lambda data, pack=pack: pack(data)[:-9]),
        )
        for name, (codec, pack) in CODECS.items()
    },
    "unknown codec": ("codec", compressed(batch(3, [b"x"]), 7, bytes)),
    "checksum": ("checksum", batch(3, [b"x" * 50])[:-3] + b"y\0\0"),
    "headers": ("damaged", batch(3, [b"x"], headers=[("h", b"")] * 1000)),
    "old format": ("old_format", struct.pack(">qiIbb", 3, 14, 0, 1, 0) + bytes(8)),
}


@pytest.mark.parametrize("case", UNREADABLE)
def test_an_unreadable_batch_costs_that_batch_alone(case: str, caplog: pytest.LogCaptureFixture) -> None:
    reason, bad = UNREADABLE[case]
    with caplog.at_level(logging.WARNING):
        offsets, records, skipped = read(batch(0, [b"a", b"b", b"c"]) + bad + batch(4, [b"d", b"e"]))
    assert offsets == [0, 1, 2, 4, 5]
    assert records.next_fetch_offset == 6
    assert skipped.counts == {reason: 1}
    assert "topic cameras, partition 3, offsets 3 to 3: skipped" in caplog.text


def test_many_unreadable_batches_do_not_flood_the_log(caplog: pytest.LogCaptureFixture) -> None:
    bad = compressed(batch(0, [b"x"]), 7, bytes)
    with caplog.at_level(logging.WARNING):
        offsets, records, skipped = read(b"".join(based(bad, i) for i in range(100)))
    assert (offsets, records.next_fetch_offset, skipped.counts) == ([], 100, {"codec": 100})
    assert len(caplog.records) == 1


def test_bytes_that_are_no_batches_are_left_behind() -> None:
    offsets, records, skipped = read(batch(0, [b"a"]) + struct.pack(">qi", 1, 3) + b"abc")
    assert offsets == [0]
    assert records.next_fetch_offset == 2
    assert skipped.counts == {"damaged": 1}


def test_the_partition_that_had_no_answer_for_longest_is_asked_for_first(broker: Broker, unique: str) -> None:
    """The embedded broker answers about the last ones with nothing when its time is up."""
    partitions = [TopicPartition(unique, number) for number in range(3)]
    with (
        closing(KafkaVideoWriter(broker.bootstrap_servers, unique, num_partitions=3)),
        closing(kafka_client.KafkaConsumer(bootstrap_servers=broker.bootstrap_servers)) as consumer,
    ):
        consumer.assign(partitions)
        guard = FetchGuard(consumer, max_batch_bytes=LIMIT, skipped=SkippedBatches())
        consumer.seek_to_beginning()
        for tp in partitions:
            consumer.position(tp)

        def answer(tp: TopicPartition, records: bytes, high_watermark: int) -> None:
            data = SimpleNamespace(
                error_code=0, records=records, high_watermark=high_watermark, aborted_transactions=None
            )
            guard._parse(  # pyright: ignore[reportPrivateUsage]
                SimpleNamespace(topic_partition=tp, partition_data=data, fetched_offset=0)
            )

        def asked() -> list[int]:
            return [tp.partition for tp in consumer._fetcher._fetchable_partitions()]

        assert sorted(asked()) == [0, 1, 2]
        for number in (1, 0, 2):
            answer(partitions[number], b"", 0)
        assert asked() == [1, 0, 2]
        answer(partitions[1], b"", 5)  # five records wait, and none came
        assert asked() == [1, 0, 2]
        answer(partitions[1], b"", 0)
        assert asked() == [0, 2, 1]


def test_reading_begins_within_a_batch() -> None:
    data = compressed(batch(0, [b"a", b"b", b"c"]), *CODECS["lz4"])
    assert read(data, 2)[0] == [2]


@pytest.fixture
def noise_producer(broker: Broker, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A producer whose batches claim zstd and hold noise. It compresses only where that saves bytes."""
    monkeypatch.setattr(kafka_records, "zstd_encode", lambda data: b"\x93noise" * 9)
    client: Any = kafka
    producer = client.KafkaProducer(bootstrap_servers=broker.bootstrap_servers, compression_type="zstd")
    yield producer
    producer.close()


@pytest.mark.parametrize("alone", [True, False])
def test_compressed_and_unreadable_batches_harm_no_camera(
    broker: Broker, unique: str, noise_producer: Any, *, alone: bool
) -> None:
    """Every codec of the field on one topic, with noise in between."""
    names = ["none", *CODECS]
    with closing(
        KafkaVideoReader(broker.bootstrap_servers, topic_pattern=unique, group=unique, alone=alone)
    ) as reader:
        noise_producer.send(unique, b"x" * 1000, key=b"noise").get(10)
        found: set[str] = set()
        seq, deadline = 0, time.monotonic() + 40
        producers = {
            name: Producer(
                {"bootstrap.servers": broker.bootstrap_servers, "compression.type": name, "log_level": 0}
            )
            for name in names
        }
        while (found != set(names) or not reader.status().num_skipped) and time.monotonic() < deadline:
            noise_producer.send(unique, b"x" * 1000, key=b"noise")
            for name in names:
                mine = encode_packet(
                    replace(PACKET, camera=name, captured_s=time.time(), seq=seq, data=b"unit" * 300), 2**22
                )
                producers[name].produce(
                    unique, mine.value, mine.key, headers=list(mine.headers), timestamp=mine.timestamp_ms
                )
                producers[name].poll(0)
            seq += 1
            found |= {record.packet.camera for record in reader.poll(0.2, 100) if record.packet}
        assert found == set(names)
        assert set(reader.status().num_skipped) == {"damaged"}
        assert reader.status().num_rebuilds == 0
        for producer in producers.values():
            producer.purge()
