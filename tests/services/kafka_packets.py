"""A packet and the access to a secured broker, for the tests of the Kafka adapters."""

from __future__ import annotations

from services.adapters.kafka_access import KafkaAccess
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
