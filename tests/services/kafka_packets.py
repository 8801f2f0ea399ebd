"""A packet, the access to a secured broker, and a way to be read at last, for the tests of the Kafka adapters."""

from __future__ import annotations

import time
from dataclasses import replace

from services.adapters.kafka_access import KafkaAccess
from services.adapters.kafka_reader import KafkaVideoReader
from services.adapters.kafka_writer import KafkaVideoWriter
from services.messages.video import VideoPacket
from tests.secured_servers import SecuredServers

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


def secured_access(servers: SecuredServers, **changes: str) -> KafkaAccess:
    who = {"username": servers.username, "password": servers.password, "ca_file": str(servers.authority)}
    return KafkaAccess(**{"protocol": "SASL_SSL", **who, **changes})


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
