"""The broker and the store are real, private to this machine, and gone when they or their parent end."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable

import pytest
from kafka import KafkaConsumer, KafkaProducer
from kafka.structs import TopicPartition
from redis import Redis

from services.local.embedded_servers import (
    Broker,
    Server,
    ServerNotStarted,
    Store,
    free_port,
    port_is_free,
    start_broker,
    start_store,
)
from services.processes.polling import wait_until


def test_broker_carries_a_message(broker: Broker, unique: str) -> None:
    producer = KafkaProducer(bootstrap_servers=broker.bootstrap_servers)
    sent = producer.send(unique, key=b"door", value=b"packet", headers=[("codec", b"h264")]).get(timeout=10)
    producer.close()
    consumer = KafkaConsumer(bootstrap_servers=broker.bootstrap_servers, auto_offset_reset="earliest")
    consumer.assign([TopicPartition(unique, sent.partition)])
    record = next(iter(consumer))
    consumer.close()
    assert (record.key, record.value, record.headers) == (b"door", b"packet", [("codec", b"h264")])


def test_store_is_bounded_and_private(store_server: Store) -> None:
    client = Redis.from_url(store_server.url)
    settings = {name: str(value) for name, value in client.config_get("*").items()}
    assert settings["maxmemory-policy"] == "noeviction"
    assert int(settings["maxmemory"]) == 2 * 2**30
    assert settings["bind"] == "127.0.0.1"
    assert settings["save"] == ""
    assert settings["client-output-buffer-limit"].startswith("normal 268435456 134217728 10")
    client.close()


@pytest.mark.parametrize("start", [start_broker, start_store])
def test_a_taken_port_is_named(start: Callable[[int], Server]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ServerNotStarted, match=rf"127\.0\.0\.1:{port}: the port is in use"):
            start(port)


def test_stopped_and_restarted_on_the_same_port() -> None:
    store = start_store()
    port = store.port
    Redis.from_url(store.url).set("key", "value")
    assert store.resident_bytes > 2**20
    os.kill(store.process.pid, signal.SIGKILL)
    assert wait_until(lambda: not store.is_alive, 5.0)
    assert store.resident_bytes == 0
    store.restart()
    assert store.port == port
    client = Redis.from_url(store.url)
    assert client.get("key") is None  # memory only
    client.close()
    store.stop()
    store.stop()
    assert port_is_free(port)


PARENT = """
import sys, time
from services.local.embedded_servers import start_broker, start_store
broker, store = start_broker(), start_store()
print(broker.process.pid, broker.port, store.process.pid, store.port, flush=True)
time.sleep(1000)
"""


def test_both_die_with_a_parent_that_was_killed() -> None:
    parent = subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    line = parent.stdout.readline()
    _, broker_port, _, store_port = map(int, line.split())
    assert not port_is_free(broker_port)
    parent.kill()
    parent.wait()
    parent.stdout.close()
    assert wait_until(lambda: port_is_free(broker_port) and port_is_free(store_port), 5.0)


def test_free_port_can_be_listened_on() -> None:
    assert port_is_free(free_port())
