"""What only a real broker can show: it goes away and comes back, and an independent client reads the same."""

from __future__ import annotations

import os
import re
import signal
import time
from contextlib import closing
from dataclasses import replace
from typing import Any

from confluent_kafka import OFFSET_BEGINNING, Consumer, Producer, TopicPartition

from services.adapters.kafka_reader import KafkaVideoReader
from services.adapters.kafka_writer import KafkaVideoWriter
from services.local.embedded_servers import Broker
from services.messages.video import VideoPacket
from services.messages.video_record import RawRecord, VideoRecord, encode_packet
from services.processes.polling import wait_until
from tests.secured_servers import SecuredServers
from tests.services.kafka_packets import PACKET, secured_access, send_until_read


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


def test_a_client_that_fetches_nothing_is_replaced(own_broker: Broker) -> None:
    """Whatever the reason, nobody may stay without pictures: here, fetching itself is broken."""
    with (
        closing(KafkaVideoWriter(own_broker.bootstrap_servers, "cameras")) as log,
        closing(
            KafkaVideoReader(own_broker.bootstrap_servers, topic_pattern="cameras", group="g", alone=True)
        ) as reader,
    ):
        seq = send_until_read(log, reader, 0)
        broken: Any = reader._consumer  # pyright: ignore[reportPrivateUsage]
        broken._fetcher.fetch_records = lambda *_, **__: ({}, True)
        began = time.monotonic()
        problems: set[str] = set()
        longest_s = 0.0
        while reader.status().num_rebuilds == 0:
            log.send(replace(PACKET, captured_s=time.time(), seq=seq))
            seq += 1
            reader.poll(0.1, 100)
            problems.add(reader.status().problem[:27])
            longest_s = max(longest_s, reader.status().standstill_s)
            assert time.monotonic() - began < 10
        assert "topic cameras, partition" in "".join(problems)
        assert 5 < longest_s < 10
        send_until_read(log, reader, seq)
        reader.poll(0.1, 100)
        assert reader.status().standstill_s < 5
        assert not reader.status().away


def test_a_broker_that_hangs_is_named(own_broker: Broker) -> None:
    with (
        closing(KafkaVideoWriter(own_broker.bootstrap_servers, "cameras")) as log,
        closing(
            KafkaVideoReader(own_broker.bootstrap_servers, topic_pattern="cameras", group="g", alone=True)
        ) as reader,
    ):
        seq = send_until_read(log, reader, 0)
        own_broker.process.send_signal(signal.SIGSTOP)
        try:

            def is_named() -> bool:
                reader.poll(0.1, 100)
                return "no answer from Kafka" in reader.status().problem and reader.status().away

            assert wait_until(is_named, 30)
        finally:
            own_broker.process.send_signal(signal.SIGCONT)
        send_until_read(log, reader, seq + 1000)
        assert not reader.status().away


def test_a_transaction_is_read_when_it_is_committed(broker: Broker, unique: str) -> None:
    """The embedded broker lists no aborted transactions, so that only a real one can show that they are left out."""
    producer = Producer(
        {"bootstrap.servers": broker.bootstrap_servers, "log_level": 0, "transactional.id": unique}
    )
    with (
        closing(KafkaVideoWriter(broker.bootstrap_servers, unique, num_partitions=1)),
        closing(
            KafkaVideoReader(broker.bootstrap_servers, topic_pattern=unique, group=unique, alone=True)
        ) as reader,
    ):
        producer.init_transactions(10)
        producer.begin_transaction()
        for seq in range(3):
            record = encode_packet(replace(PACKET, captured_s=time.time(), seq=seq), 2**22)
            producer.produce(unique, record.value, record.key, headers=list(record.headers))
        assert producer.flush(10) == 0
        assert reader.poll(0.5, 100) == []
        producer.commit_transaction(10)
        found: list[VideoRecord] = []
        assert wait_until(lambda: found.extend(reader.poll(0.1, 100)) or len(found) >= 3, 10.0)
        assert [record.packet.seq for record in found if record.packet] == [0, 1, 2]
        assert [record for record in found if record.problem] == []
    del producer  # it would go on looking for its broker
