"""The video log in memory: topics, partitions and consumer groups in one process.

It behaves as the log on Kafka does (one contract suite runs on both).
"""

from __future__ import annotations

import re
import threading
import time
import zlib
from collections import defaultdict
from collections.abc import Mapping

from services.messages.video import VideoPacket
from services.messages.video_record import (
    Partition,
    RawRecord,
    VideoRecord,
    check_record,
    dead_letter_record,
    encode_packet,
)
from services.ports.video_log import ReaderStatus


class MemoryBroker:
    """Records by topic and partition, and the commits of each consumer group."""

    def __init__(self, *, num_partitions: int = 4) -> None:
        self.changed = threading.Condition()  # reentrant
        self.num_partitions = num_partitions
        self.records: dict[Partition, list[RawRecord]] = {}
        self.committed: dict[tuple[str, Partition], int] = {}
        self.members: dict[str, list[MemoryVideoReader]] = defaultdict(list)

    def put(self, topic: str, record: RawRecord) -> None:
        """Append a record without checking it. Its key determines the partition."""
        with self.changed:
            self.create_topic(topic)
            partition = zlib.crc32(record.key or b"") % self.num_partitions
            self.records[topic, partition].append(record)
            self.changed.notify_all()

    def create_topic(self, name: str) -> None:
        """Create the topic unless it exists."""
        with self.changed:
            for partition in range(self.num_partitions):
                self.records.setdefault((name, partition), [])

    def topic(self, name: str) -> list[RawRecord]:
        """All records of a topic, partition by partition."""
        with self.changed:
            return [r for partition, records in self.records.items() if partition[0] == name for r in records]


class MemoryVideoWriter:
    """A VideoWriter."""

    def __init__(self, broker: MemoryBroker, topic: str, *, max_packet_bytes: int = 4 * 2**20) -> None:
        self.broker = broker
        self.topic = topic
        self.max_packet_bytes = max_packet_bytes

    def send(self, packet: VideoPacket) -> None:
        """Append at once."""
        self.broker.put(self.topic, encode_packet(packet, self.max_packet_bytes))

    def send_record(self, record: RawRecord) -> None:
        """Append any record at once."""
        self.broker.put(self.topic, record)

    def flush(self, timeout_s: float) -> bool:
        """Nothing is ever pending."""
        return True

    def close(self) -> None:
        """Nothing to disconnect."""


class MemoryVideoReader:
    """A VideoReader: one member of a consumer group."""

    def __init__(
        self,
        broker: MemoryBroker,
        *,
        topic_pattern: str,
        group: str,
        dead_letter_topic: str = "cameras.dead-letter",
        max_packet_bytes: int = 4 * 2**20,
        fresh_s: float = 10.0,
    ) -> None:
        self.broker = broker
        self.pattern = re.compile(topic_pattern)
        self.group = group
        self.dead_letter_topic = dead_letter_topic
        self.max_packet_bytes = max_packet_bytes
        self.fresh_s = fresh_s
        self.positions: dict[Partition, int] = {}
        self._lost: set[Partition] = set()
        with broker.changed:
            broker.members[group].append(self)

    def poll(self, timeout_s: float, max_records: int) -> list[VideoRecord]:
        """Next records of the assigned partitions."""
        deadline = time.monotonic() + timeout_s
        with self.broker.changed:
            while True:
                self._assign()
                found = self._read(max_records)
                left_s = deadline - time.monotonic()
                if found or left_s <= 0:
                    return found
                self.broker.changed.wait(left_s)

    def _assign(self) -> None:
        """Distribute the partitions among the members, round robin."""
        members = self.broker.members[self.group]
        partitions = sorted(
            partition
            for partition in self.broker.records
            if self.pattern.fullmatch(partition[0]) and partition[0] != self.dead_letter_topic
        )
        ours = {partition for i, partition in enumerate(partitions) if members[i % len(members)] is self}
        for partition in set(self.positions) - ours:
            del self.positions[partition]
            self._lost.add(partition)
        for partition in ours - set(self.positions):
            self.positions[partition] = self._first_offset(partition)

    def _first_offset(self, partition: Partition) -> int:
        """The offset of the group's commit, but not before the oldest fresh record."""
        records = self.broker.records[partition]
        oldest_ms = (time.time() - self.fresh_s) * 1000
        fresh = (i for i, record in enumerate(records) if record.timestamp_ms >= oldest_ms)
        return max(next(fresh, len(records)), self.broker.committed.get((self.group, partition), 0))

    def _read(self, max_records: int) -> list[VideoRecord]:
        found: list[VideoRecord] = []
        for (topic, partition), position in self.positions.items():
            records = self.broker.records[topic, partition][position : position + max_records - len(found)]
            self.positions[topic, partition] = position + len(records)
            found += [
                check_record(
                    record,
                    topic=topic,
                    partition=partition,
                    offset=position + i,
                    max_packet_bytes=self.max_packet_bytes,
                )
                for i, record in enumerate(records)
            ]
        return found

    def commit(self, offsets: Mapping[Partition, int]) -> None:
        """Commit at once, for the assigned partitions."""
        with self.broker.changed:
            for partition in set(offsets) & set(self.positions):
                self.broker.committed[self.group, partition] = offsets[partition]

    def take_lost(self) -> set[Partition]:
        """Partitions that were lost to another member since the last call."""
        lost, self._lost = self._lost, set()
        return lost

    def dead_letter(self, record: VideoRecord, reason: str) -> None:
        """Copy to the dead-letter topic."""
        self.broker.put(self.dead_letter_topic, dead_letter_record(record, reason))

    def lag(self) -> int:
        """Number of unread records in the assigned partitions."""
        with self.broker.changed:
            return sum(len(self.broker.records[p]) - position for p, position in self.positions.items())

    def status(self) -> ReaderStatus:
        """It never stands still."""
        with self.broker.changed:
            return ReaderStatus(
                lag={p: len(self.broker.records[p]) - position for p, position in self.positions.items()}
            )

    def close(self) -> None:
        """Leave the group."""
        with self.broker.changed:
            if self in self.broker.members[self.group]:
                self.broker.members[self.group].remove(self)
            self.broker.changed.notify_all()
