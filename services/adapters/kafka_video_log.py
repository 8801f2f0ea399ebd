"""The video log on Kafka: the only file that knows the Kafka client (kafka-python 3).

The client has no asyncio: the writer may be used from any thread, the reader from one thread of its own.
"""

from __future__ import annotations

import logging
import re
import socket
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

import kafka
from kafka.consumer.subscription_state import ConsumerRebalanceListener
from kafka.coordinator.assignors.roundrobin import RoundRobinPartitionAssignor
from kafka.errors import KafkaError, TopicAlreadyExistsError, TopicAuthorizationFailedError, UnknownError
from kafka.structs import OffsetAndMetadata, TopicPartition

from services.adapters.kafka_access import OPEN, KafkaAccess
from services.messages.video import VideoPacket
from services.ports.video_log import (
    LogLost,
    Place,
    RawRecord,
    VideoRecord,
    check_record,
    dead_letter_record,
    encode_packet,
)

log = logging.getLogger(__name__)
client: Any = kafka  # the type stubs that come with checkers still describe version 2

NUM_PARTITIONS = 8  # of a topic that we create: so many FrameFifo replicas can share it
PENDING_BYTES = 32 * 2**20  # on their way at most; older cameras' video is worth nothing
DELIVERY_MS = 2000  # what could not be written for so long is dropped
HEADROOM_BYTES = 64 * 2**10  # key, headers and framing around an access unit
RETRY_S = 1.0  # between attempts to reach a broker that is away
COMMIT_EVERY_S = 1.0
JOIN_S = 3.5  # the embedded broker takes 3 s to let a member in


OnDrop = Callable[[RawRecord, str], None]


class KafkaVideoLog:
    """The writing side. LogLost from the constructor when no broker answers; later outages only drop, counted."""

    def __init__(
        self,
        bootstrap_servers: str,
        topic: str,
        *,
        max_packet_bytes: int = 4 * 2**20,
        num_partitions: int = NUM_PARTITIONS,
        on_drop: OnDrop | None = None,
        access: KafkaAccess = OPEN,
    ) -> None:
        self.topic = topic
        self._access = access
        self.num_dropped = 0
        self._bootstrap = bootstrap_servers
        self._max_packet_bytes = max_packet_bytes
        self._num_partitions = num_partitions
        self._on_drop = on_drop
        self._lock = threading.Lock()
        self._pending_bytes = 0
        self._retry_at = 0.0  # monotonic; until then the broker is taken as away
        self._topic_known = False
        check_reachable(bootstrap_servers)
        try:
            self._producer = client.KafkaProducer(
                bootstrap_servers=bootstrap_servers.split(","),
                **access.options,
                # A live picture is worth nothing late: one attempt's order, the leader's word, no long retries.
                acks=1,
                enable_idempotence=False,
                max_in_flight_requests_per_connection=1,
                linger_ms=0,
                delivery_timeout_ms=DELIVERY_MS,
                request_timeout_ms=DELIVERY_MS - 500,
                max_block_ms=500,
                max_request_size=max_packet_bytes + HEADROOM_BYTES,
                bootstrap_timeout_ms=5000,
                reconnect_backoff_max_ms=1000,
                metadata_max_age_ms=5000,
                metrics_enabled=False,
            )
            self._create_topic()
        except (KafkaError, ValueError, OSError) as error:
            raise LogLost(f"no Kafka broker answers at {bootstrap_servers}: {error}") from error

    def send(self, packet: VideoPacket) -> None:
        """Write soon, or drop and count; ValueError for a packet that readers would refuse."""
        self.put(encode_packet(packet, self._max_packet_bytes))

    def put(self, record: RawRecord) -> None:
        """Write any record soon, or drop and count. Blocks for about a second at most, and rarely."""
        size = len(record.value or b"")
        now = time.monotonic()
        if now < self._retry_at:
            return self._drop(record, "broker_away")
        with self._lock:
            full = self._pending_bytes + size > PENDING_BYTES
            if not full:
                self._pending_bytes += size
        if full:
            return self._drop(record, "backlog")
        try:
            if not self._topic_known:
                self._create_topic()
            future: Any = self._producer.send(
                self.topic,
                key=record.key,
                value=record.value,
                headers=list(record.headers),
                timestamp_ms=record.timestamp_ms,
            )
        except (KafkaError, OSError) as error:
            self._failed(record, size, error)
        else:
            future.add_callback(lambda _: self._release(size))
            future.add_errback(lambda error: self._failed(record, size, error))

    def _create_topic(self) -> None:
        """Create the topic if it is missing: at the start, and after a broker came back empty."""
        check_reachable(self._bootstrap)
        admin = client.KafkaAdminClient(
            bootstrap_servers=self._bootstrap.split(","),
            bootstrap_timeout_ms=1000,
            request_timeout_ms=2000,
            **self._access.options,
        )
        try:
            admin.create_topics(
                {self.topic: {"num_partitions": self._num_partitions, "replication_factor": -1}}
            )
        except (TopicAlreadyExistsError, TopicAuthorizationFailedError):
            pass  # it is there, or those who may make topics have made it, as on a cluster with least rights
        finally:
            admin.close()
        self._topic_known = True

    def _release(self, size: int) -> None:
        with self._lock:
            self._pending_bytes -= size

    def _failed(self, record: RawRecord, size: int, error: BaseException) -> None:
        self._release(size)
        # Perhaps the broker came back without the topic. The embedded one then took some packets all the same, and
        # refuses as many with UnknownError once the topic is there again: no reason to wait.
        self._topic_known = isinstance(error, UnknownError) and self._topic_known
        if not isinstance(error, UnknownError):
            self._retry_at = time.monotonic() + RETRY_S
        self._drop(record, type(error).__name__)

    def _drop(self, record: RawRecord, reason: str) -> None:
        with self._lock:
            self.num_dropped += 1
        if self._on_drop is not None:
            self._on_drop(record, reason)

    def flush(self, timeout_s: float) -> bool:
        """Wait until nothing is on its way; False if that took longer."""
        try:
            self._producer.flush(timeout=timeout_s)
        except KafkaError:
            return False
        return True

    def close(self) -> None:
        """Write what is on its way, for two seconds at most, and let go."""
        self._producer.close(timeout=2)


class KafkaVideoReader:
    """The reading side: finds new topics and cameras by itself, and waits out a broker that is away."""

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
        # The client matches a pattern at a name's start; we mean the whole name, and never our own dead letters.
        self._pattern = rf"(?!{re.escape(dead_letter_topic)}$)(?:{topic_pattern})$"
        self._group = group
        self._dead_letter_topic = dead_letter_topic
        self._max_packet_bytes = max_packet_bytes
        self._fresh_s = fresh_s
        self._metadata_max_age_s = metadata_max_age_s
        self._consumer: Any = None
        self._letters: KafkaVideoLog | None = None
        self._letters_retry_at = 0.0
        self._next: dict[Place, int] = {}  # our next offset, where we read
        self._unplaced: set[Place] = set()  # newly ours: not yet sought to where reading starts
        self._revoked: set[Place] = set()
        self._lost: set[Place] = set()
        self._commits: dict[Place, int] = {}
        self._committed_at = 0.0
        self._lag = 0
        self._joining = True
        self._away = False

    def poll(self, timeout_s: float, max_records: int) -> list[VideoRecord]:
        """Next records, in order per partition; empty after `timeout_s` or while the broker is away."""
        try:
            consumer = self._connected()
            # A join that ends between two polls is begun anew by kafka-python 3.0.12: while joining, wait it out.
            wait_s = max(timeout_s, JOIN_S) if self._joining else timeout_s
            batches = consumer.poll(timeout_ms=round(wait_s * 1000), max_records=max_records)
            moved = self._place_new(consumer)
            self._write_commits(consumer)
        except (KafkaError, OSError, ValueError, AssertionError) as error:
            self._report(error, timeout_s)
            return []
        if self._away and batches:
            self._away = False
            log.warning("reading from Kafka at %s again", self._bootstrap)
        records: list[VideoRecord] = []
        for place, batch in batches.items():
            if (place.topic, place.partition) not in moved:
                records += [self._checked(record) for record in batch]
        self._measure(consumer)
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
        """Say once that the broker is away, and do not spin meanwhile."""
        if not self._away:
            log.warning("cannot read from Kafka at %s, trying again: %s", self._bootstrap, error)
        self._away = True
        time.sleep(min(timeout_s, RETRY_S))

    def _checked(self, record: Any) -> VideoRecord:
        self._next[record.topic, record.partition] = record.offset + 1
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

    # -- where reading starts --

    def assigned(self, places: set[Place]) -> None:
        """Called by the client within a rebalance: no network here."""
        self._joining = False
        self._unplaced |= places
        self._lost |= self._revoked - places
        self._revoked.clear()

    def revoked(self, places: set[Place]) -> None:
        """Called by the client before partitions are given up: the last chance to commit."""
        self._joining = True
        if self._consumer is None:
            return
        # kafka-python 3.0.12 forgets a join that a new topic began and that outlasts one poll: it would never read
        # again. With the wish to join on record, the next poll takes the join up where it was.
        self._consumer._coordinator.request_rejoin()
        commits = {place: offset for place, offset in self._commits.items() if place in places}
        if commits:
            self._consumer.commit_async(as_offsets(commits))
        self._drop_places(places)
        self._revoked |= places

    def forget(self, places: set[Place]) -> None:
        """Called by the client when others already have our partitions: too late to commit."""
        self._joining = True
        self._drop_places(places)
        self._lost |= places

    def _drop_places(self, places: set[Place]) -> None:
        self._unplaced -= places
        for place in places:
            self._commits.pop(place, None)

    def _place_new(self, consumer: Any) -> set[Place]:
        """Seek partitions that have just become ours to where reading starts; what was read of them is void."""
        if not self._unplaced:
            return set()
        places = {TopicPartition(*place) for place in self._unplaced}
        oldest_ms = round((time.time() - self._fresh_s) * 1000)
        fresh = consumer.offsets_for_times(dict.fromkeys(places, oldest_ms))
        ends = consumer.end_offsets(list(places))
        for place in places:
            # Where the group was, but never further back than what is still fresh; where we were, if it stayed ours.
            start = fresh[place].offset if fresh.get(place) is not None else ends[place]
            start = max(start, consumer.committed(place) or 0)
            if (place.topic, place.partition) not in self._lost:
                start = max(start, self._next.get((place.topic, place.partition), 0))
            # Past the end of a broker that came back empty, the client itself goes on at the end.
            consumer.seek(place, start)
            self._next[place.topic, place.partition] = start
        moved, self._unplaced = self._unplaced, set[Place]()
        return moved

    # -- commits, dead letters, lag --

    def commit(self, offsets: Mapping[Place, int]) -> None:
        """Note where a restart reads on; written within about a second, and when a partition is given up."""
        self._commits.update(offsets)

    def _write_commits(self, consumer: Any) -> None:
        now = time.monotonic()
        if self._commits and now - self._committed_at >= COMMIT_EVERY_S:
            consumer.commit_async(as_offsets(self._commits))
            self._commits.clear()
            self._committed_at = now

    def lost(self) -> set[Place]:
        """Partitions that another member has taken since the last call."""
        lost, self._lost = self._lost, set()
        for place in lost:
            self._next.pop(place, None)
        return lost

    def dead_letter(self, record: VideoRecord, reason: str) -> None:
        """Copy a record to the dead letters; while the broker is away they are only counted by the caller."""
        now = time.monotonic()
        if self._letters is None and now >= self._letters_retry_at:
            self._letters_retry_at = now + RETRY_S
            try:
                self._letters = KafkaVideoLog(
                    self._bootstrap, self._dead_letter_topic, num_partitions=1, access=self._access
                )
            except LogLost as error:
                log.warning("a dead letter could not be written: %s", error)
        if self._letters is not None:
            self._letters.put(dead_letter_record(record, reason))

    def _measure(self, consumer: Any) -> None:
        lag = 0
        for place in consumer.assignment():
            end = consumer.highwater(place)
            if end is not None:
                lag += max(0, end - self._next.get((place.topic, place.partition), end))
        self._lag = lag

    def lag(self) -> int:
        """Records written but not yet read, as far as known."""
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
            if self._letters is not None:
                self._letters.flush(2.0)
                self._letters.close()


class RebalanceListener(ConsumerRebalanceListener):
    """Tells the reader which partitions come and go; the client calls it on its own thread."""

    def __init__(self, reader: KafkaVideoReader) -> None:
        self.reader = reader

    def on_partitions_revoked(self, revoked: Any) -> None:
        self.reader.revoked(as_places(revoked))

    def on_partitions_assigned(self, assigned: Any) -> None:
        self.reader.assigned(as_places(assigned))

    def on_partitions_lost(self, lost: Any) -> None:
        self.reader.forget(as_places(lost))


def check_reachable(bootstrap_servers: str, timeout_s: float = 3.0) -> None:
    """LogLost at once when nobody listens: the client would try for long, and leave its socket open."""
    problem: Exception | None = None
    for server in bootstrap_servers.split(","):
        host, _, port = server.strip().rpartition(":")
        try:
            with socket.create_connection((host.strip("[]"), int(port)), timeout=timeout_s):
                return
        except (OSError, ValueError) as error:
            problem = error
    raise LogLost(f"no Kafka broker answers at {bootstrap_servers}: {problem}")


def as_places(partitions: Any) -> set[Place]:
    """The client's partitions as ours."""
    return {(place.topic, place.partition) for place in partitions}


def as_offsets(commits: Mapping[Place, int]) -> dict[TopicPartition, OffsetAndMetadata]:
    """Our commits as the client's."""
    return {TopicPartition(*place): OffsetAndMetadata(offset, "", -1) for place, offset in commits.items()}
