"""Reads video from Kafka (kafka-python 3). The client has no asyncio; a reader belongs to one thread."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Mapping
from typing import Any

import kafka
from kafka.consumer.subscription_state import ConsumerRebalanceListener
from kafka.coordinator.assignors.roundrobin import RoundRobinPartitionAssignor
from kafka.errors import KafkaError
from kafka.structs import OffsetAndMetadata, TopicPartition

from services.adapters.kafka_access import OPEN, KafkaAccess, check_reachable
from services.adapters.kafka_writer import HEADROOM_BYTES, RETRY_S, KafkaVideoWriter
from services.messages.video_record import (
    Partition,
    RawRecord,
    VideoRecord,
    check_record,
    dead_letter_record,
)
from services.ports.video_log import LogLost

log = logging.getLogger(__name__)
client: Any = kafka  # type checkers carry the stubs of version 2

COMMIT_EVERY_S = 1.0
JOIN_S = 3.5  # the embedded broker takes 3 s to admit a member


class KafkaVideoReader:
    """A VideoReader. It finds new topics and cameras by itself, and waits for a broker that is away."""

    def __init__(
        self,
        bootstrap_servers: str,
        *,
        topic_pattern: str,
        group: str,
        dead_letter_topic: str = "cameras.dead-letter",
        max_packet_bytes: int = 4 * 2**20,
        fresh_s: float = 10.0,
        metadata_max_age_s: float = 2.0,
        access: KafkaAccess = OPEN,
    ) -> None:
        self._access = access
        self._bootstrap = bootstrap_servers
        # The client matches a pattern at the start of a name. This one matches whole names but the dead letters.
        self._pattern = rf"(?!{re.escape(dead_letter_topic)}$)(?:{topic_pattern})$"
        self._group = group
        self._dead_letter_topic = dead_letter_topic
        self._max_packet_bytes = max_packet_bytes
        self._fresh_s = fresh_s
        self._metadata_max_age_s = metadata_max_age_s
        self._consumer: Any = None
        self._dead_letters: KafkaVideoWriter | None = None
        self._dead_letters_retry_at = 0.0
        self._next_offsets: dict[Partition, int] = {}
        self._unpositioned: set[Partition] = (
            set()
        )  # newly assigned: not yet sought to the first offset to read
        self._revoked: set[Partition] = set()
        self._lost: set[Partition] = set()
        self._commits: dict[Partition, int] = {}
        self._committed_at = 0.0
        self._lag = 0
        self._joining = True
        self._away = False

    def poll(self, timeout_s: float, max_records: int) -> list[VideoRecord]:
        """Next records, in order per partition; empty after `timeout_s` or while the broker is away."""
        try:
            consumer = self._connected()
            # kafka-python 3.0.12 starts a join again that ends between two polls: while joining, poll for long enough.
            wait_s = max(timeout_s, JOIN_S) if self._joining else timeout_s
            batches = consumer.poll(timeout_ms=round(wait_s * 1000), max_records=max_records)
            moved = self._seek_assigned(consumer)
            self._write_commits(consumer)
        except (KafkaError, OSError, ValueError, AssertionError) as error:
            self._report(error, timeout_s)
            return []
        if self._away and batches:
            self._away = False
            log.warning("reading from Kafka at %s again", self._bootstrap)
        records: list[VideoRecord] = []
        for partition, batch in batches.items():
            if (partition.topic, partition.partition) not in moved:
                records += [self._check(record) for record in batch]
        self._update_lag(consumer)
        return records

    def _connected(self) -> Any:
        if self._consumer is None:
            check_reachable(self._bootstrap)
            consumer = client.KafkaConsumer(
                bootstrap_servers=self._bootstrap.split(","),
                **self._access.options,
                group_id=self._group,
                enable_auto_commit=False,
                auto_offset_reset="latest",
                partition_assignment_strategy=(RoundRobinPartitionAssignor,),
                session_timeout_ms=6000,
                heartbeat_interval_ms=1000,
                request_timeout_ms=5000,
                bootstrap_timeout_ms=2000,
                reconnect_backoff_max_ms=1000,
                metadata_max_age_ms=round(self._metadata_max_age_s * 1000),
                fetch_max_wait_ms=100,
                max_partition_fetch_bytes=2 * (self._max_packet_bytes + HEADROOM_BYTES),
                allow_auto_create_topics=False,
                metrics_enabled=False,
            )
            consumer.subscribe(pattern=self._pattern, listener=RebalanceListener(self))
            self._consumer = consumer
        return self._consumer

    def _report(self, error: BaseException, timeout_s: float) -> None:
        """Log once that the broker is away, and pause before the next attempt."""
        if not self._away:
            log.warning("cannot read from Kafka at %s, trying again: %s", self._bootstrap, error)
        self._away = True
        time.sleep(min(timeout_s, RETRY_S))

    def _check(self, record: Any) -> VideoRecord:
        self._next_offsets[record.topic, record.partition] = record.offset + 1
        return check_record(
            RawRecord(
                key=record.key,
                value=record.value,
                headers=tuple((name, value or b"") for name, value in record.headers),
                timestamp_ms=record.timestamp,
            ),
            topic=record.topic,
            partition=record.partition,
            offset=record.offset,
            max_packet_bytes=self._max_packet_bytes,
        )

    # -- partitions come and go --

    def on_assigned(self, partitions: set[Partition]) -> None:
        """Called by the client within a rebalance: no network calls here."""
        self._joining = False
        self._unpositioned |= partitions
        self._lost |= self._revoked - partitions
        self._revoked.clear()

    def on_revoked(self, partitions: set[Partition]) -> None:
        """Called by the client before partitions are given up: the last chance to commit."""
        self._joining = True
        if self._consumer is None:
            return
        # kafka-python 3.0.12 forgets a join that a new topic started and that takes longer than one poll: it would
        # never read again. After this request the next poll continues the join.
        self._consumer._coordinator.request_rejoin()
        commits = {one: offset for one, offset in self._commits.items() if one in partitions}
        if commits:
            self._consumer.commit_async(as_offsets(commits))
        self._drop(partitions)
        self._revoked |= partitions

    def on_lost(self, partitions: set[Partition]) -> None:
        """Called by the client when other members already have these partitions: too late to commit."""
        self._joining = True
        self._drop(partitions)
        self._lost |= partitions

    def _drop(self, partitions: set[Partition]) -> None:
        self._unpositioned -= partitions
        for partition in partitions:
            self._commits.pop(partition, None)

    def _seek_assigned(self, consumer: Any) -> set[Partition]:
        """Seek newly assigned partitions to their first offset to read. Records already fetched of them are void."""
        if not self._unpositioned:
            return set()
        partitions = {TopicPartition(*partition) for partition in self._unpositioned}
        oldest_ms = round((time.time() - self._fresh_s) * 1000)
        fresh = consumer.offsets_for_times(dict.fromkeys(partitions, oldest_ms))
        ends = consumer.end_offsets(list(partitions))
        for partition in partitions:
            # At the group's commit, but not before the oldest fresh record; if it stayed ours, where we were.
            start = fresh[partition].offset if fresh.get(partition) is not None else ends[partition]
            start = max(start, consumer.committed(partition) or 0)
            if (partition.topic, partition.partition) not in self._lost:
                start = max(start, self._next_offsets.get((partition.topic, partition.partition), 0))
            # Past the end of a broker that has lost its data, the client itself continues at the end.
            consumer.seek(partition, start)
            self._next_offsets[partition.topic, partition.partition] = start
        moved, self._unpositioned = self._unpositioned, set[Partition]()
        return moved

    # -- commits, dead letters, lag --

    def commit(self, offsets: Mapping[Partition, int]) -> None:
        """Set where a restart continues. Written within about a second, and before a partition is revoked."""
        self._commits.update(offsets)

    def _write_commits(self, consumer: Any) -> None:
        now = time.monotonic()
        if self._commits and now - self._committed_at >= COMMIT_EVERY_S:
            consumer.commit_async(as_offsets(self._commits))
            self._commits.clear()
            self._committed_at = now

    def take_lost(self) -> set[Partition]:
        """Partitions that were lost to another member since the last call."""
        lost, self._lost = self._lost, set()
        for partition in lost:
            self._next_offsets.pop(partition, None)
        return lost

    def dead_letter(self, record: VideoRecord, reason: str) -> None:
        """Copy a record to the dead-letter topic. While the broker is away, it is lost."""
        now = time.monotonic()
        if self._dead_letters is None and now >= self._dead_letters_retry_at:
            self._dead_letters_retry_at = now + RETRY_S
            try:
                self._dead_letters = KafkaVideoWriter(
                    self._bootstrap, self._dead_letter_topic, num_partitions=1, access=self._access
                )
            except LogLost as error:
                log.warning("a dead letter could not be written: %s", error)
        if self._dead_letters is not None:
            self._dead_letters.send_record(dead_letter_record(record, reason))

    def _update_lag(self, consumer: Any) -> None:
        lag = 0
        for partition in consumer.assignment():
            end = consumer.highwater(partition)
            if end is not None:
                lag += max(0, end - self._next_offsets.get((partition.topic, partition.partition), end))
        self._lag = lag

    def lag(self) -> int:
        """Number of records written but not yet read, as far as known."""
        return self._lag

    def close(self) -> None:
        """Write the last commit and leave the group; two seconds at most each."""
        try:
            if self._consumer is not None:
                if self._commits:
                    self._consumer.commit(as_offsets(self._commits), timeout_ms=2000)
                    self._commits.clear()
                self._consumer.close(autocommit=False, timeout_ms=2000)
        except KafkaError as error:
            log.warning("the last commit was not written: %s", error)
        finally:
            self._consumer = None
            if self._dead_letters is not None:
                self._dead_letters.flush(2.0)
                self._dead_letters.close()


class RebalanceListener(ConsumerRebalanceListener):
    """Tells the reader which partitions come and go; the client calls it on its own thread."""

    def __init__(self, reader: KafkaVideoReader) -> None:
        self.reader = reader

    def on_partitions_revoked(self, revoked: Any) -> None:
        self.reader.on_revoked(as_partitions(revoked))

    def on_partitions_assigned(self, assigned: Any) -> None:
        self.reader.on_assigned(as_partitions(assigned))

    def on_partitions_lost(self, lost: Any) -> None:
        self.reader.on_lost(as_partitions(lost))


def as_partitions(partitions: Any) -> set[Partition]:
    """The client's partitions as ours."""
    return {(one.topic, one.partition) for one in partitions}


def as_offsets(commits: Mapping[Partition, int]) -> dict[TopicPartition, OffsetAndMetadata]:
    """Our commits as the client's."""
    return {TopicPartition(*one): OffsetAndMetadata(offset, "", -1) for one, offset in commits.items()}
