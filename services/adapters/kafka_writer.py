"""Writes video to Kafka (kafka-python 3). The client has no asyncio; a writer may be used from any thread."""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import kafka
from kafka.errors import (
    KafkaError,
    TopicAlreadyExistsError,
    TopicAuthorizationFailedError,
    UnknownError,
    UnknownTopicOrPartitionError,
)

from services.adapters.kafka_access import OPEN, KafkaAccess, check_reachable
from services.messages.sent_gops import SentGops
from services.messages.video import VideoPacket
from services.messages.video_record import RawRecord, encode_packet
from services.ports.video_log import LogLost

log = logging.getLogger(__name__)
client: Any = kafka  # type checkers carry the stubs of version 2

NUM_PARTITIONS = 8  # of a topic created here: at most this many FrameFifo replicas can share it
PENDING_BYTES = 32 * 2**20  # at most, of packets being sent; older live video is worth nothing
DELIVERY_MS = 2000  # a packet that could not be written in this time is dropped
HEADROOM_BYTES = 64 * 2**10  # key, headers and framing around an access unit
RETRY_S = 1.0  # between attempts to reach a broker that is away
REMAKE_ATTEMPTS = 5
REPEAT_EVERY_S = 0.25  # at most so often are a camera's packets sent again

OnDrop = Callable[[RawRecord, str], None]


class KafkaVideoWriter:
    """A VideoWriter. Its constructor raises LogLost when no broker answers; later outages only drop and count.

    When the topic was deleted and made again, each camera's packets since its last keyframe are sent again, so that
    readers need not wait for the next keyframe.
    """

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
        self._retry_at = 0.0  # monotonic; until then the broker counts as away
        self._topic_known = False
        self._sent = SentGops()
        self._offsets: dict[str, int] = {}  # of each camera's newest record
        self._repeat: set[str] = set()  # cameras whose packets are to be sent again
        self._repeated_at: dict[str, float] = {}  # monotonic, by camera
        check_reachable(bootstrap_servers)
        try:
            self._producer = client.KafkaProducer(
                bootstrap_servers=bootstrap_servers.split(","),
                **access.options,
                # A late picture is worth nothing: keep the order, wait for the leader alone, retry briefly.
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
                allow_auto_create_topics=False,  # it would have one partition
                metrics_enabled=False,
            )
            self._create_topic()
        except (KafkaError, ValueError, OSError) as error:
            raise LogLost(f"no Kafka broker answers at {bootstrap_servers}: {error}") from error

    def send(self, packet: VideoPacket) -> None:
        """Write soon or drop and count; ValueError for a packet that readers would refuse."""
        record = encode_packet(packet, self._max_packet_bytes)
        self._repeat_lost()
        with self._lock:
            self._sent.add(packet.camera, record, keyframe=packet.keyframe, now_s=time.monotonic())
        self.send_record(record, packet.camera)

    def _repeat_lost(self) -> None:
        """Send what a deleted topic may have taken with it, before any newer packet."""
        now = time.monotonic()
        if not self._repeat or now < self._retry_at:
            return
        oldest = now - REPEAT_EVERY_S
        with self._lock:
            due = {one for one in self._repeat if self._repeated_at.get(one, oldest) <= oldest}
            self._repeat -= due
            self._repeated_at |= dict.fromkeys(due, now)
            for camera in due:
                self._offsets.pop(camera, None)
            lost = [(camera, record) for camera in due for record in self._sent.records(camera, now_s=now)]
        for camera, record in lost:
            self.send_record(record, camera)

    def _note_written(self, camera: str, offset: int) -> None:
        """Called by the client's thread, in order. Offsets go back when a topic was made again."""
        with self._lock:
            if offset <= self._offsets.get(camera, -1):
                self._repeat.add(camera)
            self._offsets[camera] = offset

    def send_record(self, record: RawRecord, camera: str = "") -> None:
        """Write any record soon or drop and count it. Blocks rarely, and for about a second at most.

        `camera`: whose packet it is; without it the record is never sent again.
        """
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
            self._handle_failure(record, size, camera, error)
        else:
            future.add_callback(lambda written: self._handle_success(size, camera, written.offset))
            future.add_errback(lambda error: self._handle_failure(record, size, camera, error))

    def _create_topic(self) -> None:
        """Create the topic if it is missing: at the start, and after a broker has lost its data."""
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
            pass  # it exists; or we may not create topics, and somebody else does
        finally:
            admin.close()
        self._topic_known = True

    def _release(self, size: int) -> None:
        with self._lock:
            self._pending_bytes -= size

    def _handle_success(self, size: int, camera: str, offset: int) -> None:
        self._release(size)
        if camera:
            self._note_written(camera, offset)

    def _handle_failure(self, record: RawRecord, size: int, camera: str, error: BaseException) -> None:
        self._release(size)
        if camera and isinstance(error, UnknownError | UnknownTopicOrPartitionError):
            with self._lock:
                self._repeat.add(camera)
        # The broker may have come back without the topic. The embedded broker accepts some packets even so, and
        # refuses as many with UnknownError once the topic exists again: that is no reason to wait.
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
        """Wait until all pending packets are written; False if that takes longer than `timeout_s`."""
        try:
            self._producer.flush(timeout=timeout_s)
        except KafkaError:
            return False
        return True

    def close(self) -> None:
        """Write pending packets for two seconds at most, then disconnect."""
        self._producer.close(timeout=2)


class LateVideoWriter:
    """Connects with the first record: for a topic that few records go to. While the broker is away, they are lost."""

    def __init__(self, bootstrap_servers: str, topic: str, *, access: KafkaAccess = OPEN) -> None:
        self._bootstrap, self._topic, self._access = bootstrap_servers, topic, access
        self._writer: KafkaVideoWriter | None = None
        self._retry_at = 0.0  # monotonic

    def send_record(self, record: RawRecord) -> None:
        """Write a record soon, or drop it. Never raises."""
        now = time.monotonic()
        if self._writer is None and now >= self._retry_at:
            self._retry_at = now + RETRY_S
            try:
                self._writer = KafkaVideoWriter(
                    self._bootstrap, self._topic, num_partitions=1, access=self._access
                )
            except LogLost as error:
                log.warning("topic %s: a record could not be written: %s", self._topic, error)
        if self._writer is not None:
            self._writer.send_record(record)

    def close(self) -> None:
        """Write pending records for four seconds at most, then disconnect."""
        if self._writer is not None:
            self._writer.flush(2.0)
            self._writer.close()


def remake_topics(bootstrap_servers: str, pattern: str) -> list[str]:
    """Delete the topics whose whole names match, with their records, and make them again at once. Gives their names.

    They get as many partitions as before, also where another program's producer makes one first, with its broker's
    default. Raises LogLost when the broker does not answer. A topic that could be deleted but not made again is made
    by its next writer.
    """
    check_reachable(bootstrap_servers)
    try:
        admin = client.KafkaAdminClient(
            bootstrap_servers=bootstrap_servers.split(","), bootstrap_timeout_ms=1000, request_timeout_ms=2000
        )
        try:
            found = _num_partitions(admin)
            wanted = {name: number for name, number in found.items() if re.fullmatch(pattern, name)}
            names = [*wanted]
            for _ in range(REMAKE_ATTEMPTS):
                if not wanted:
                    break
                if old := [name for name in wanted if name in found]:
                    admin.delete_topics(old)
                with suppress(TopicAlreadyExistsError):
                    admin.create_topics(
                        {
                            name: {"num_partitions": number, "replication_factor": -1}
                            for name, number in wanted.items()
                        }
                    )
                found = _num_partitions(admin)
                wanted = {name: number for name, number in wanted.items() if found.get(name, 0) < number}
        finally:
            admin.close()
    except (KafkaError, OSError, ValueError) as error:
        raise LogLost(f"topics were not made again at {bootstrap_servers}: {error}") from error
    return names


def _num_partitions(admin: Any) -> dict[str, int]:
    """Of each topic."""
    return {topic["name"]: len(topic["partitions"]) for topic in admin.describe_topics()}
