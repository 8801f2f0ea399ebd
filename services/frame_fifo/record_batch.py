"""The records of one poll: which of each camera are the newest, and in which order they are decoded."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from services.messages.video_record import Partition, VideoRecord

Source = tuple[Partition, str]  # partition and camera: one camera id from two topics is two sources


@dataclass(slots=True, frozen=True)
class NewestInBatch:
    """The newest of one source in a batch of records."""

    keyframe_offset: int  # of the last keyframe; -1: none
    captured_s: float  # newest capture time


def newest_by_source(records: list[VideoRecord]) -> dict[Source, NewestInBatch]:
    """The newest of each source in these records."""
    newest: dict[Source, NewestInBatch] = {}
    for record in records:
        if (packet := record.packet) is not None:
            source = (record.topic_partition, packet.camera)
            before = newest.get(source, NewestInBatch(-1, packet.captured_s))
            newest[source] = NewestInBatch(
                record.offset if packet.keyframe else before.keyframe_offset,
                max(before.captured_s, packet.captured_s),
            )
    return newest


def interleave(records: list[VideoRecord]) -> list[VideoRecord]:
    """The first record of each source by age, then the second of each, ...: a backlog of one does not delay others."""
    counts: Counter[tuple[Partition, bytes]] = Counter()
    order: list[tuple[int, float]] = []
    for record in records:
        counts[record.topic_partition, record.key] += 1
        order.append((counts[record.topic_partition, record.key], record.timestamp_ms))
    return [records[i] for i in sorted(range(len(records)), key=order.__getitem__)]
