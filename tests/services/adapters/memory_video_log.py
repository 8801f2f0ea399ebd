"""The video log's in-memory twin: topics, partitions and consumer groups in one process, for tests and experiments.

It behaves as the real log does (one contract suite runs on both), so the services can be run without a broker.
"""

from __future__ import annotations

import re
import threading
import time
import zlib
from collections import defaultdict
from collections.abc import Mapping

from services.messages.video import VideoPacket
from services.ports.video_log import (
    Place,
    RawRecord,
    VideoRecord,
    check_record,
    dead_letter_record,
    encode_packet,
)


class MemoryBroker:
    """Topics of partitions of records, and what each consumer group has committed."""

    def __init__(self, *, num_partitions: int = 4) -> None:
        self.changed = threading.Condition()  # reentrant
        self.num_partitions = num_partitions
        self.records: dict[Place, list[RawRecord]] = {}
        self.committed: dict[tuple[str, Place], int] = {}
        self.members: dict[str, list[MemoryVideoReader]] = defaultdict(list)

    def put(self, topic: str, record: RawRecord) -> None:
        """Append a record, whatever it is; its key chooses the partition."""
        with self.changed:
            self.create_topic(topic)
            partition = zlib.crc32(record.key or b"") % self.num_partitions
            self.records[topic, partition].append(record)
            self.changed.notify_all()

    def create_topic(self, name: str) -> None:
        """Make sure that a topic is there."""
        with self.changed:
            for partition in range(self.num_partitions):
                self.records.setdefault((name, partition), [])

    def topic(self, name: str) -> list[RawRecord]:
        """Every record of a topic, partition by partition."""
        with self.changed:
            return [r for place, records in self.records.items() if place[0] == name for r in records]


class MemoryVideoLog:
    """The writing side."""

    def __init__(self, broker: MemoryBroker, topic: str, *, max_packet_bytes: int = 4 * 2**20) -> None:
        self.broker = broker
        self.topic = topic
        self.max_packet_bytes = max_packet_bytes

    def send(self, packet: VideoPacket) -> None:
        """Append at once."""
        self.broker.put(self.topic, encode_packet(packet, self.max_packet_bytes))

    def flush(self, timeout_s: float) -> bool:
        """Nothing is ever on its way."""
        return True

    def close(self) -> None:
        """Nothing to let go of."""


class MemoryVideoReader:
    """The reading side: one member of a consumer group."""

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
        self.positions: dict[Place, int] = {}
        self._lost: set[Place] = set()
        with broker.changed:
            broker.members[group].append(self)

    def poll(self, timeout_s: float, max_records: int) -> list[VideoRecord]:
        """Next records of the partitions that are ours."""
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
        """Share the topics' partitions among the members, in turn."""
        members = self.broker.members[self.group]
        places = sorted(
            place
            for place in self.broker.records
            if self.pattern.fullmatch(place[0]) and place[0] != self.dead_letter_topic
        )
        ours = {place for i, place in enumerate(places) if members[i % len(members)] is self}
        for place in set(self.positions) - ours:
            del self.positions[place]
            self._lost.add(place)
        for place in ours - set(self.positions):
            self.positions[place] = self._start(place)

    def _start(self, place: Place) -> int:
        """Where the group was, but never further back than what is still fresh."""
        records = self.broker.records[place]
        oldest_ms = (time.time() - self.fresh_s) * 1000
        fresh = (i for i, record in enumerate(records) if record.timestamp_ms >= oldest_ms)
        return max(next(fresh, len(records)), self.broker.committed.get((self.group, place), 0))

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

    def commit(self, offsets: Mapping[Place, int]) -> None:
        """Note at once, for the partitions that are ours."""
        with self.broker.changed:
            for place in set(offsets) & set(self.positions):
                self.broker.committed[self.group, place] = offsets[place]

    def lost(self) -> set[Place]:
        """Partitions that another member has taken since the last call."""
        lost, self._lost = self._lost, set()
        return lost

    def dead_letter(self, record: VideoRecord, reason: str) -> None:
        """Copy to the dead letters."""
        self.broker.put(self.dead_letter_topic, dead_letter_record(record, reason))

    def lag(self) -> int:
        """Records of our partitions not yet read."""
        with self.broker.changed:
            return sum(len(self.broker.records[p]) - position for p, position in self.positions.items())

    def close(self) -> None:
        """Leave the group."""
        with self.broker.changed:
            if self in self.broker.members[self.group]:
                self.broker.members[self.group].remove(self)
            self.broker.changed.notify_all()
