"""What only a real broker can show: it goes away and comes back, and an independent client reads the same."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from confluent_kafka import OFFSET_BEGINNING, Consumer, Producer, TopicPartition

from services.adapters.kafka_access import KafkaAccess
from services.adapters.kafka_video_log import PENDING_BYTES, KafkaVideoLog, KafkaVideoReader
from services.local.embedded_servers import Broker, free_port, start_broker
from services.messages.video import VideoPacket
from services.ports.video_log import LogLost, RawRecord, VideoRecord, encode_packet
from services.processes.polling import wait_until
from tests.secured_servers import SecuredServers, certificates

PACKET = VideoPacket(
    camera="door",
    captured_s=1_800_000_000.0,
    codec="h264",
    keyframe=True,
    pts=0,
    time_base=(1, 90_000),
    seq=0,
    data=b"unit",
)


@pytest.fixture
def own_broker() -> Iterator[Broker]:
    """A broker that a test may stop."""
    server = start_broker()
    yield server
    server.stop()


def send_until_read(log: KafkaVideoLog, reader: KafkaVideoReader, first_seq: int) -> int:
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
            KafkaVideoLog(
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


def test_a_broker_that_stands_still_costs_bounded_memory(own_broker: Broker) -> None:
    with closing(KafkaVideoLog(own_broker.bootstrap_servers, "cameras")) as log:
        log.send(PACKET)
        assert log.flush(5)
        os.kill(own_broker.process.pid, signal.SIGSTOP)
        try:
            big = replace(PACKET, data=bytes(2 * 2**20))
            for _ in range(40):
                log.send(big)
                assert log._pending_bytes <= PENDING_BYTES  # pyright: ignore[reportPrivateUsage]
            assert log.num_dropped > 0
        finally:
            os.kill(own_broker.process.pid, signal.SIGCONT)
        deadline = time.monotonic() + 20
        while log._pending_bytes and time.monotonic() < deadline:  # pyright: ignore[reportPrivateUsage]
            log.flush(1)
        assert log._pending_bytes == 0  # pyright: ignore[reportPrivateUsage]


def test_nobody_there_is_told_at_once() -> None:
    started = time.monotonic()
    with pytest.raises(LogLost, match="no Kafka broker answers at"):
        KafkaVideoLog(f"127.0.0.1:{free_port()}", "cameras")
    assert time.monotonic() - started < 4


def test_an_independent_client_reads_what_we_write_and_writes_what_we_read(
    broker: Broker, unique: str
) -> None:
    large = replace(PACKET, captured_s=round(time.time(), 3), data=os.urandom(3 * 2**20))
    theirs = replace(large, camera="theirs", data=b"unit")
    with closing(KafkaVideoLog(broker.bootstrap_servers, unique, num_partitions=1)) as log:
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


def guarded(servers: SecuredServers, **changes: str) -> KafkaAccess:
    who = {"username": servers.username, "password": servers.password, "ca_file": str(servers.authority)}
    return KafkaAccess(**{"protocol": "SASL_SSL", **who, **changes})


def test_a_broker_behind_tls_and_a_password_is_written_and_read(secured: SecuredServers, unique: str) -> None:
    access = guarded(secured)
    letters = f"{unique}.letters"
    with (
        closing(KafkaVideoLog(secured.kafka, unique, num_partitions=1, access=access)) as log,
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
        log.put(RawRecord(key=b"door", value=b"no headers", headers=(), timestamp_ms=1))
        bad: list[VideoRecord] = []

        def one_is_bad() -> bool:
            bad.extend(record for record in reader.poll(0.2, 100) if record.problem)
            return bool(bad)

        def its_letter_is_found() -> bool:
            reader.dead_letter(bad[0], "reason")
            return bool(found.poll(0.2, 100))

        assert wait_until(one_is_bad, 60)
        assert wait_until(its_letter_is_found, 60)


REFUSED = """
import json, sys
from services.kafka_access import KafkaAccess
from services.kafka_video_log import KafkaVideoLog
for options in json.loads(sys.argv[2]):
    try:
        KafkaVideoLog(sys.argv[1], "cameras", access=KafkaAccess(**options))
        print("let in")
    except ConnectionError as error:
        print(type(error).__name__, error)
"""


def test_a_broker_behind_a_door_needs_all_that_opens_it(secured: SecuredServers, tmp_path: Path) -> None:
    other, _ = certificates(tmp_path)  # of an authority that signed nothing here
    attempts = [
        guarded(secured),
        guarded(secured, password="wrong"),
        guarded(secured, username="somebody"),
        guarded(secured, ca_file=str(other)),
        guarded(secured, protocol="SSL"),
        KafkaAccess(),
    ]
    # In a process of its own: kafka-python leaves the sockets of refused connections open for long.
    command = [sys.executable, "-c", REFUSED, secured.kafka, json.dumps([asdict(one) for one in attempts])]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    lines = done.stdout.splitlines()
    assert lines[0] == "let in"
    assert [line.split()[0] for line in lines[1:]] == ["LogLost"] * 5
    assert secured.password not in done.stdout + done.stderr + repr(attempts)
