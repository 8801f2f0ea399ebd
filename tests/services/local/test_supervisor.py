"""A full broker is emptied while it runs; it is started again only when that does not help."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import kafka
import pytest

from services.adapters.kafka_writer import KafkaVideoWriter
from services.local.embedded_servers import Server
from services.local.supervisor import Supervisor
from services.messages.video_record import RawRecord
from services.processes.polling import wait_until
from services.settings import Settings

LIMIT = 48 * 2**20
MEGABYTE = RawRecord(key=b"door", value=bytes(2**20), headers=(), timestamp_ms=round(time.time() * 1000))
client: Any = kafka


@pytest.fixture
def supervisor(tmp_path: Path) -> Iterator[Supervisor]:
    made = Supervisor(Settings(redis_url="redis://127.0.0.1:1/0"), tmp_path, max_broker_bytes=LIMIT)
    made._start_servers()  # pyright: ignore[reportPrivateUsage]
    yield made
    broker_of(made).stop()  # `Supervisor.stop` ends all of this process' children, the session's servers too


def broker_of(supervisor: Supervisor) -> Server:
    return supervisor._servers[0]  # pyright: ignore[reportPrivateUsage]


def fill(broker: Server, topic: str, num_partitions: int) -> None:
    with closing(KafkaVideoWriter(broker.address, topic, num_partitions=num_partitions)) as log:
        while broker.resident_bytes <= LIMIT:
            log.send_record(MEGABYTE)
            assert log.flush(5.0)
        assert log.num_dropped == 0


def num_partitions(broker: Server) -> dict[str, int]:
    with closing(client.KafkaAdminClient(bootstrap_servers=broker.address)) as admin:
        return {one["name"]: len(one["partitions"]) for one in admin.describe_topics()}


@pytest.mark.parametrize("topic", ["cameras", "cameras.yard", "cameras.dead-letter"])
def test_a_full_broker_is_emptied_and_not_started_again(supervisor: Supervisor, topic: str) -> None:
    broker = broker_of(supervisor)
    with closing(KafkaVideoWriter(broker.address, "others", num_partitions=2)):
        pass
    fill(broker, topic, num_partitions=3)
    process = broker.process

    def is_emptied() -> bool:
        supervisor.check()
        return broker.resident_bytes < LIMIT / 2

    assert wait_until(is_emptied, 10.0)
    assert broker.process is process
    assert broker.is_alive
    assert num_partitions(broker) == {topic: 3, "others": 2}


def test_dead_letters_are_kept_while_deleting_video_is_enough(supervisor: Supervisor) -> None:
    broker = broker_of(supervisor)
    with closing(KafkaVideoWriter(broker.address, "cameras.dead-letter", num_partitions=1)) as letters:
        letters.send_record(MEGABYTE)
        assert letters.flush(5.0)
    fill(broker, "cameras", num_partitions=8)
    supervisor.check()
    assert wait_until(lambda: broker.resident_bytes < LIMIT / 2, 10.0)
    letter = client.TopicPartition("cameras.dead-letter", 0)
    with closing(client.KafkaConsumer(bootstrap_servers=broker.address)) as consumer:
        assert consumer.end_offsets([letter]) == {letter: 1}


def test_a_broker_that_cannot_be_emptied_is_started_again(supervisor: Supervisor) -> None:
    broker = broker_of(supervisor)
    process = broker.process
    supervisor._max_broker_bytes = 2**20  # pyright: ignore[reportPrivateUsage]  # less than an empty one needs
    supervisor.check()
    assert broker.process is not process
    assert broker.is_alive
