"""The writer on a real broker: bounded memory, and errors at once."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import closing
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from services.adapters.kafka_access import KafkaAccess
from services.adapters.kafka_writer import PENDING_BYTES, KafkaVideoWriter
from services.local.embedded_servers import Broker, free_port
from services.ports.video_log import LogLost
from tests.secured_servers import SecuredServers, certificates
from tests.services.kafka_packets import PACKET, secured_access


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
