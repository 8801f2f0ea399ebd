"""What only a real broker can show: it goes away and comes back, and an independent client reads the same."""

from __future__ import annotations

import os
import re
import time
from contextlib import closing
from dataclasses import replace

from confluent_kafka import OFFSET_BEGINNING, Consumer, Producer, TopicPartition

from services.adapters.kafka_reader import KafkaVideoReader
from services.adapters.kafka_writer import KafkaVideoWriter
from services.local.embedded_servers import Broker
from services.messages.video import VideoPacket
from services.messages.video_record import RawRecord, VideoRecord, encode_packet
from services.processes.polling import wait_until
from tests.secured_servers import SecuredServers
from tests.services.adapters.kafka_packets import PACKET, secured_access


def send_until_read(log: KafkaVideoWriter, reader: KafkaVideoReader, first_seq: int) -> int:
    """Send a packet now and then until one is read; gives its seq."""
    deadline = time.monotonic() + 60
    seq = first_seq
    while time.monotonic() < deadline:
        log.send(replace(PACKET, captured_s=time.time(), seq=seq))
        seq += 1
        for record in reader.poll(0.2, 100):
            if record.packet is not None and record.packet.seq >= first_seq:
                return seq
    raise AssertionError("nothing was read in a minute")


def test_a_broker_that_comes_back_empty_is_written_and_read_again(own_broker: Broker) -> None:
    dropped: list[str] = []
    with (
        closing(
            KafkaVideoWriter(
                own_broker.bootstrap_servers, "cameras", on_drop=lambda record, reason: dropped.append(reason)
            )
        ) as log,
        closing(
            KafkaVideoReader(
                own_broker.bootstrap_servers, topic_pattern="cameras", group="g", metadata_max_age_s=0.5
            )
        ) as reader,
    ):
        seq = send_until_read(log, reader, 0)
        own_broker.stop()
        started = time.monotonic()
        while not dropped:
            log.send(replace(PACKET, seq=seq))
            assert reader.poll(0.1, 100) == [] or time.monotonic() - started < 1
            assert time.monotonic() - started < 30
        calls_s = []
        for _ in range(20):
            before = time.monotonic()
            log.send(replace(PACKET, seq=seq))
            calls_s.append(time.monotonic() - before)
        assert sorted(calls_s)[10] < 0.01  # most writes to a broker that is away cost nothing
        own_broker.restart()
        send_until_read(log, reader, 1_000_000)
        assert log.num_dropped == len(dropped) > 0


def test_an_independent_client_reads_what_we_write_and_writes_what_we_read(
    broker: Broker, unique: str
) -> None:
    large = replace(PACKET, captured_s=round(time.time(), 3), data=os.urandom(3 * 2**20))
    theirs = replace(large, camera="theirs", data=b"unit")
    with closing(KafkaVideoWriter(broker.bootstrap_servers, unique, num_partitions=1)) as log:
        log.send(large)
        assert log.flush(10)
    consumer = Consumer({"bootstrap.servers": broker.bootstrap_servers, "group.id": f"{unique}-theirs"})
    consumer.assign([TopicPartition(unique, 0, OFFSET_BEGINNING)])
    message = consumer.consume(1, timeout=20)[0]
    consumer.close()
    record = RawRecord(
        key=message.key(),  # pyright: ignore[reportArgumentType]
        value=message.value(),  # pyright: ignore[reportArgumentType]
        headers=message.headers(),  # pyright: ignore[reportArgumentType]
        timestamp_ms=message.timestamp()[1],
    )
    assert record == replace(encode_packet(large, 2**22), headers=list(encode_packet(large, 2**22).headers))
    producer = Producer({"bootstrap.servers": broker.bootstrap_servers, "log_level": 0})
    mine = encode_packet(theirs, 2**22)
    producer.produce(
        unique, value=mine.value, key=mine.key, headers=list(mine.headers), timestamp=mine.timestamp_ms
    )
    assert producer.flush(10) == 0
    del producer  # it would go on looking for its broker
    with closing(
        KafkaVideoReader(broker.bootstrap_servers, topic_pattern=unique, group=unique, fresh_s=60)
    ) as reader:
        found: list[VideoPacket] = []
        deadline = time.monotonic() + 20
        while len(found) < 2 and time.monotonic() < deadline:
            found += [record.packet for record in reader.poll(0.2, 10) if record.packet]
    assert found == [large, theirs]


def test_a_broker_behind_tls_and_a_password_is_written_and_read(secured: SecuredServers, unique: str) -> None:
    access = secured_access(secured)
    letters = f"{unique}.letters"
    with (
        closing(KafkaVideoWriter(secured.kafka, unique, num_partitions=1, access=access)) as log,
        closing(
            KafkaVideoReader(
                secured.kafka, topic_pattern=unique, group=unique, dead_letter_topic=letters, access=access
            )
        ) as reader,
        closing(
            KafkaVideoReader(
                secured.kafka,
                topic_pattern=re.escape(letters),
                group=f"{unique}-letters",
                dead_letter_topic="none",
                access=access,
            )
        ) as found,
    ):
        send_until_read(log, reader, 0)
        log.send_record(RawRecord(key=b"door", value=b"no headers", headers=(), timestamp_ms=1))
        bad: list[VideoRecord] = []

        def one_is_bad() -> bool:
            bad.extend(record for record in reader.poll(0.2, 100) if record.problem)
            return bool(bad)

        def its_letter_is_found() -> bool:
            reader.dead_letter(bad[0], "reason")
            return bool(found.poll(0.2, 100))

        assert wait_until(one_is_bad, 60)
        assert wait_until(its_letter_is_found, 60)
