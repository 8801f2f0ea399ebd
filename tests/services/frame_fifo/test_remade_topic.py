"""A topic that is emptied under a running camera: publisher, broker and FrameFifo are real."""

from __future__ import annotations

import asyncio
import time
from itertools import pairwise

import pytest

from services.adapters.kafka_reader import KafkaVideoReader
from services.adapters.kafka_writer import KafkaVideoWriter, remake_topics
from services.frame_fifo.frame_fifo import FrameFifo
from services.local.embedded_servers import Broker
from services.messages.video import Frame
from services.messages.video_record import RawRecord, VideoRecord
from services.ports.frame_store import KEPT_S
from services.processes.polling import wait_until
from tests.services.adapters.memory_frame_store import MemoryFrameStore
from tests.services.frame_fifo.running_fifo import CONFIG, encode, recorder, settings, until
from tests.services.h264 import camera_packets, encoded

MAX_GAP_S = 0.5 + 0.25  # what is promised, and what a loaded machine adds


class TimedStore(MemoryFrameStore):
    """Notes when each frame was stored, and what was refused."""

    def __init__(self) -> None:
        super().__init__()
        self.stored: list[tuple[float, float]] = []  # monotonic time, capture time
        self.num_refused = 0

    def append(self, frame: Frame, *, capacity: int, keep_s: float = KEPT_S) -> bool:
        new = super().append(frame, capacity=capacity, keep_s=keep_s)
        if new:
            self.stored.append((time.monotonic(), frame.captured_s))
        self.num_refused += not new
        return new


async def publish(log: KafkaVideoWriter, until_s: float) -> None:
    """A camera with a keyframe every 4 s, in real time."""
    for packet in camera_packets(encoded(90, gop=60), start_s=time.time()):
        await asyncio.sleep(max(0.0, packet.captured_s - time.time()))
        await asyncio.to_thread(log.send, packet)
        if time.monotonic() > until_s:
            return


async def test_no_frame_is_missing_and_none_is_told_twice(broker: Broker, unique: str) -> None:
    store = TimedStore()
    log = KafkaVideoWriter(broker.bootstrap_servers, unique, num_partitions=1)
    for _ in range(500):  # a topic that is full has more records than a GOP
        log.send_record(RawRecord(key=b"door", value=b"old", headers=(), timestamp_ms=0))
    assert log.flush(5.0)
    reader = KafkaVideoReader(
        broker.bootstrap_servers,
        topic_pattern=unique,
        group=unique,
        dead_letter_topic=f"{unique}.dead",
        alone=True,
    )
    old: list[VideoRecord] = []
    assert wait_until(lambda: old.extend(reader.poll(0.1, 1000)) or len(old) == 500, 10.0)
    fifo = FrameFifo(settings(), CONFIG, reader, store, encode, recorder=recorder())
    running = asyncio.create_task(fifo.run())
    camera = asyncio.create_task(publish(log, time.monotonic() + 4.0))
    try:
        await until(lambda: len(store.stored) >= 8)  # most of a GOP: nothing of it is needed twice
        remade_at = time.monotonic()
        assert await asyncio.to_thread(remake_topics, broker.bootstrap_servers, unique) == [unique]
        await until(lambda: store.stored[-1][0] > remade_at + 1.0)
        await camera
        assert log.flush(5.0)
    finally:
        camera.cancel()
        await fifo.close()
        await running
        log.close()
    times, captured = zip(*store.stored, strict=True)
    assert captured == tuple(sorted(set(captured)))
    assert max(b - a for a, b in pairwise(captured)) == pytest.approx(0.2, abs=0.01)
    assert max(b - a for a, b in pairwise(times)) < MAX_GAP_S
    assert fifo.counts().dead_letters == {}
    assert store.num_refused == 0
    assert reader.status().num_skipped == {"remade": 1}
