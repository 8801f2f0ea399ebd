"""Makes and closes the Kafka client's consumer, and converts between its types and ours."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, Protocol

import kafka
from kafka.consumer.subscription_state import ConsumerRebalanceListener
from kafka.coordinator.assignors.roundrobin import RoundRobinPartitionAssignor
from kafka.structs import OffsetAndMetadata, TopicPartition

from services.adapters.kafka_access import KafkaAccess
from services.adapters.kafka_writer import HEADROOM_BYTES
from services.messages.video_record import Partition

log = logging.getLogger(__name__)
client: Any = kafka  # type checkers carry the stubs of version 2


def make_consumer(
    bootstrap_servers: str, group: str, access: KafkaAccess, max_packet_bytes: int, metadata_max_age_s: float
) -> Any:
    """A consumer that is connected and reads nothing yet. It never reads what a transaction has not committed."""
    return client.KafkaConsumer(
        bootstrap_servers=bootstrap_servers.split(","),
        **access.options,
        group_id=group,
        enable_auto_commit=False,
        auto_offset_reset="latest",
        isolation_level="read_committed",
        partition_assignment_strategy=(RoundRobinPartitionAssignor,),
        session_timeout_ms=6000,
        heartbeat_interval_ms=1000,
        request_timeout_ms=5000,
        bootstrap_timeout_ms=2000,
        reconnect_backoff_max_ms=1000,
        metadata_max_age_ms=round(metadata_max_age_s * 1000),
        fetch_max_wait_ms=100,
        max_partition_fetch_bytes=2 * (max_packet_bytes + HEADROOM_BYTES),
        allow_auto_create_topics=False,
        metrics_enabled=False,
    )


def close_consumer(consumer: Any) -> None:
    """Leave the group with a connection that stood still; it may not answer."""
    try:
        consumer.close(autocommit=False, timeout_ms=2000)
    except Exception as error:  # whatever a broken client raises, it is given up
        log.warning("the former connection to Kafka was not closed: %s: %s", type(error).__name__, error)


def as_partitions(partitions: Any) -> set[Partition]:
    """The client's partitions as ours."""
    return {(one.topic, one.partition) for one in partitions}


def as_offsets(commits: Mapping[Partition, int]) -> dict[TopicPartition, OffsetAndMetadata]:
    """Our commits as the client's."""
    return {TopicPartition(*one): OffsetAndMetadata(offset, "", -1) for one, offset in commits.items()}


class GroupMember(Protocol):
    """What hears which partitions come and go."""

    def on_revoked(self, partitions: set[Partition]) -> None: ...

    def on_assigned(self, partitions: set[Partition]) -> None: ...

    def on_lost(self, partitions: set[Partition]) -> None: ...


class RebalanceListener(ConsumerRebalanceListener):
    """Tells a member which partitions come and go; the client calls it on the thread that polls."""

    def __init__(self, member: GroupMember) -> None:
        self.member = member

    def on_partitions_revoked(self, revoked: Any) -> None:
        self.member.on_revoked(as_partitions(revoked))

    def on_partitions_assigned(self, assigned: Any) -> None:
        self.member.on_assigned(as_partitions(assigned))

    def on_partitions_lost(self, lost: Any) -> None:
        self.member.on_lost(as_partitions(lost))
