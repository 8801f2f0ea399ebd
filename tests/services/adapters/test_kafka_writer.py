"""The writer on a real broker: bounded memory, errors at once, and topics that are deleted and made again."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import closing, suppress
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import kafka
import pytest
from confluent_kafka import Producer

from services.adapters.kafka_access import KafkaAccess
from services.adapters.kafka_reader import KafkaVideoReader
from services.adapters.kafka_writer import PENDING_BYTES, KafkaVideoWriter, remake_topics
from services.local.embedded_servers import Broker, free_port
from services.messages.video_record import encode_packet
from services.ports.video_log import LogLost
from services.processes.polling import wait_until
from tests.secured_servers import SecuredServers, certificates
from tests.services.kafka_packets import PACKET, secured_access, send_until_read


def test_a_broker_that_stands_still_costs_bounded_memory(own_broker: Broker) -> None:
    with closing(KafkaVideoWriter(own_broker.bootstrap_servers, "cameras")) as log:
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
        KafkaVideoWriter(f"127.0.0.1:{free_port()}", "cameras")
    assert time.monotonic() - started < 4


REFUSED = """
import json, sys
from services.adapters.kafka_access import KafkaAccess
from services.adapters.kafka_writer import KafkaVideoWriter
for options in json.loads(sys.argv[2]):
    try:
        KafkaVideoWriter(sys.argv[1], "cameras", access=KafkaAccess(**options))
        print("let in")
    except ConnectionError as error:
        print(type(error).__name__, error)
"""


def test_a_broker_behind_a_door_needs_all_that_opens_it(secured: SecuredServers, tmp_path: Path) -> None:
    other, _ = certificates(tmp_path)  # of an authority that signed nothing here
    attempts = [
        secured_access(secured),
        secured_access(secured, password="wrong"),
        secured_access(secured, username="somebody"),
        secured_access(secured, ca_file=str(other)),
        secured_access(secured, protocol="SSL"),
        KafkaAccess(),
    ]
    # In a process of its own: kafka-python leaves the sockets of refused connections open for long.
    command = [sys.executable, "-c", REFUSED, secured.kafka, json.dumps([asdict(one) for one in attempts])]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    lines = done.stdout.splitlines()
    assert lines[0] == "let in"
    assert [line.split()[0] for line in lines[1:]] == ["LogLost"] * 5
    assert secured.password not in done.stdout + done.stderr + repr(attempts)


@pytest.mark.parametrize("alone", [True, False])
def test_a_topic_that_is_deleted_and_made_again_is_read(own_broker: Broker, *, alone: bool) -> None:
    admin: Any = kafka
    with (
        closing(KafkaVideoWriter(own_broker.bootstrap_servers, "cameras", num_partitions=1)) as log,
        closing(
            KafkaVideoReader(
                own_broker.bootstrap_servers,
                topic_pattern="cameras",
                group="g",
                metadata_max_age_s=0.5,
                alone=alone,
            )
        ) as reader,
    ):
        seq = send_until_read(log, reader, 0)
        seq = send_until_read(log, reader, seq)
        with closing(admin.KafkaAdminClient(bootstrap_servers=own_broker.bootstrap_servers)) as client:
            client.delete_topics(["cameras"])
        send_until_read(log, reader, seq)


@pytest.mark.parametrize("alone", [True, False])
def test_what_a_deleted_topic_took_with_it_is_sent_and_read_again(
    broker: Broker, unique: str, *, alone: bool
) -> None:
    """The publisher sends its newest GOP again, and the reader goes on at the start of the new topic."""
    servers = broker.bootstrap_servers

    def send(first: int, last: int) -> None:
        for seq in range(first, last + 1):
            log.send(replace(PACKET, captured_s=time.time(), seq=seq, keyframe=seq == 0))
            log.flush(5)

    with (
        closing(KafkaVideoWriter(servers, unique, num_partitions=1)) as log,
        closing(
            KafkaVideoReader(
                servers,
                topic_pattern=unique,
                group=unique,
                dead_letter_topic=f"{unique}.dead",
                alone=alone,
            )
        ) as reader,
    ):
        seqs: list[int] = []

        def read_up_to(seq: int) -> bool:
            seqs.extend(record.packet.seq for record in reader.poll(0.1, 1000) if record.packet)
            return seq in seqs

        for _ in range(100):  # a full topic has more records than a GOP
            log.send_record(encode_packet(replace(PACKET, captured_s=time.time(), seq=1000), 2**22))
        send(0, 2)
        assert wait_until(lambda: read_up_to(2), 30.0)
        send(3, 4)  # nobody reads them in time
        assert remake_topics(servers, unique) == [unique]
        seqs.clear()
        send(5, 7)
        assert wait_until(lambda: read_up_to(7), 10.0)
        assert seqs[seqs.index(0) :] == [*range(8)]
        assert reader.status().num_skipped == {"remade": 1}


def test_a_topic_is_made_again_under_many_writers(own_broker: Broker) -> None:
    """The broker keeps batches that were on their way, at their old offsets. They must not mislead the reader."""
    servers, stop = own_broker.bootstrap_servers, threading.Event()
    client = Producer({"bootstrap.servers": servers, "log_level": 0})
    pause_s = 0.0005

    def flood() -> None:
        producer = Producer({"bootstrap.servers": servers, "log_level": 0, "linger.ms": 1})
        for seq in itertools.count():
            record = encode_packet(replace(PACKET, captured_s=time.time(), seq=seq), 2**22)
            with suppress(BufferError):
                producer.produce(
                    "cameras", record.value, f"c{seq % 40}".encode(), headers=list(record.headers)
                )
            producer.poll(0)
            if stop.wait(pause_s):
                return

    def all_are_read(since_s: float, read: set[int]) -> bool:
        for record in reader.poll(0.1, 1000):
            if record.packet is not None and record.packet.captured_s > since_s:
                read.add(record.partition)
        found = client.list_topics("cameras", timeout=5).topics["cameras"].partitions
        return bool(found) and read >= set(found)

    with (
        closing(KafkaVideoWriter(servers, "cameras", num_partitions=8)),
        closing(
            KafkaVideoReader(servers, topic_pattern="cameras", group="g", metadata_max_age_s=0.5, alone=True)
        ) as reader,
    ):
        threads = [threading.Thread(target=flood) for _ in range(4)]
        for thread in threads:
            thread.start()
        try:
            assert wait_until(lambda: sum(len(reader.poll(0.1, 1000)) for _ in range(20)) > 1000, 20)
            assert remake_topics(servers, "cameras") == ["cameras"]
            assert len(client.list_topics("cameras", timeout=5).topics["cameras"].partitions) == 8
            pause_s = 0.1  # the new topic is far from the offsets of the one before
            assert wait_until(partial(all_are_read, time.time(), set[int]()), 20)
        finally:
            stop.set()
            for thread in threads:
                thread.join()


def test_a_topic_that_comes_again_with_more_partitions_is_read(broker: Broker, unique: str) -> None:
    """The embedded broker adds no partitions to a topic; the reader finds them in the same way."""
    admin: Any = kafka
    servers = broker.bootstrap_servers
    seqs: set[int] = set()

    def send(seq: int, partition: int) -> None:
        record = encode_packet(replace(PACKET, captured_s=time.time(), seq=seq), 2**22)
        producer = Producer({"bootstrap.servers": servers, "log_level": 0})
        producer.produce(unique, record.value, record.key, partition, headers=list(record.headers))
        assert producer.flush(10) == 0

    with (
        closing(KafkaVideoWriter(servers, unique, num_partitions=1)),
        closing(
            KafkaVideoReader(servers, topic_pattern=unique, group=unique, metadata_max_age_s=0.2, alone=True)
        ) as reader,
        closing(admin.KafkaAdminClient(bootstrap_servers=servers)) as client,
    ):

        def is_read(seq: int) -> bool:
            seqs.update(record.packet.seq for record in reader.poll(0.1, 100) if record.packet)
            return seq in seqs

        send(0, 0)
        assert wait_until(lambda: is_read(0), 10.0)
        client.delete_topics([unique])
        client.create_topics({unique: {"num_partitions": 3, "replication_factor": -1}})
        send(1, 2)
        assert wait_until(lambda: is_read(1), 10.0)
        send(2, 1)
        assert wait_until(lambda: is_read(2), 10.0)


def test_a_commit_of_the_topic_before_hides_nothing_of_the_new_one(broker: Broker, unique: str) -> None:
    servers = broker.bootstrap_servers

    def new_reader() -> KafkaVideoReader:
        return KafkaVideoReader(servers, topic_pattern=unique, group=unique, alone=True)

    def seqs_up_to(last: int, reader: KafkaVideoReader) -> list[int]:
        found: list[int] = []

        def are_read() -> bool:
            found.extend(record.packet.seq for record in reader.poll(0.1, 1000) if record.packet)
            return last in found

        assert wait_until(are_read, 10.0)
        return found

    def send(*seqs: int) -> None:
        for seq in seqs:
            packet = replace(PACKET, captured_s=time.time(), seq=seq)
            log.send_record(encode_packet(packet, 2**22))  # as of a publisher that sends nothing again
            log.flush(5)

    with closing(KafkaVideoWriter(servers, unique, num_partitions=1)) as log:
        send(*range(20))
        with closing(new_reader()) as reader:
            seqs_up_to(19, reader)
            reader.commit({(unique, 0): 15})
        remake_topics(servers, unique)
        send(20, 21, 22)
        with closing(new_reader()) as reader:
            assert seqs_up_to(22, reader)[-2:] == [21, 22]
            reader.commit({(unique, 0): 1})
        with closing(new_reader()) as reader:
            assert 20 not in seqs_up_to(22, reader)
