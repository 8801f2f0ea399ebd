"""The order of decoding."""

from __future__ import annotations

from services.frame_fifo.record_batch import interleave
from services.messages.video_record import RawRecord, encode_packet
from tests.services.adapters.memory_video_log import MemoryBroker, MemoryVideoReader
from tests.services.frame_fifo.running_fifo import (
    LIMIT,
    live,
)


async def test_a_backlog_of_one_camera_does_not_delay_others() -> None:
    broker = MemoryBroker(num_partitions=1)
    for packet in (*live(30, "pile", ends_s=5.0), *live(1, "c"), *live(2, "b", ends_s=1.0)):
        broker.put("cameras", encode_packet(packet, LIMIT))
    broker.put("cameras", RawRecord(key=b"pile", value=b"x", headers=(), timestamp_ms=0))
    reader = MemoryVideoReader(broker, topic_pattern="cameras", group="g", max_packet_bytes=LIMIT)
    records = interleave(reader.poll(0.1, 100))
    cameras = [record.key.decode() for record in records]
    assert cameras[:5] == ["pile", "b", "c", "pile", "b"]
    assert [record.offset for record in records if record.key == b"pile"] == [*range(30), 33]
    assert [record.offset for record in records if record.key == b"b"] == [31, 32]
