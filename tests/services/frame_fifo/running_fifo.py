"""A FrameFifo on a log and a store in memory, for tests."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from model.config import preset
from services.adapters.prometheus_recorder import PrometheusRecorder
from services.frame_fifo.frame_fifo import FrameFifo
from services.frame_fifo.metrics import FrameFifoCounts
from services.messages.video import VideoPacket, VisualTokens
from services.messages.video_record import encode_packet
from services.settings import Settings
from tests.services.adapters.memory_frame_store import MemoryFrameStore
from tests.services.adapters.memory_video_log import MemoryBroker, MemoryVideoReader
from tests.services.h264 import camera_packets, encoded

CONFIG = preset("tiny")
SIZE = CONFIG.vision.image_size
LIMIT = 200_000


async def encode(pictures: list[bytes]) -> list[VisualTokens]:
    """A simple vision encoder: the mean colour of each of 3x3 patches."""
    out: list[VisualTokens] = []
    for raw in pictures:
        picture = np.frombuffer(raw, np.uint8).reshape(3, SIZE // 3, 3, SIZE // 3, 3)
        colours = picture.mean(axis=(1, 3)).reshape(9, 3).astype("<f4")
        out.append(VisualTokens(shape=(9, 3), dtype="float32", data=colours.tobytes()))
    return out


@dataclass
class RunningFifo:
    """A FrameFifo that runs on a log and a store in memory."""

    fifo: FrameFifo
    broker: MemoryBroker
    store: MemoryFrameStore

    def send(self, *packets: VideoPacket) -> None:
        for packet in packets:
            self.broker.put("cameras", encode_packet(packet, LIMIT))

    @property
    def counts(self) -> FrameFifoCounts:
        return self.fifo.counts()

    @property
    def all_done(self) -> bool:
        """Whether every sampled frame was stored or dropped."""
        now = self.counts
        return now.frames_sampled == now.frames_stored + now.frames_dropped.total()

    async def wait_until_done(self) -> FrameFifoCounts:
        """Wait until every packet sent was read, decoded, encoded and stored or dropped."""

        def done() -> bool:
            now = self.counts
            bad = now.dead_letters.total() - now.dead_letters["damaged"]
            return now.packets_read + bad >= len(self.broker.topic("cameras")) and self.all_done

        await until(done)
        return self.counts


async def until(done: Callable[[], bool], timeout_s: float = 30.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not done():
        assert time.monotonic() < deadline, "it did not happen in time"
        await asyncio.sleep(0.01)


def recorder() -> PrometheusRecorder:
    return PrometheusRecorder("frame_fifo")


def settings(**changes: Any) -> Settings:
    values: dict[str, Any] = {"max_packet_bytes": LIMIT} | changes
    return Settings(**values)


@asynccontextmanager
async def running_fifo(
    *,
    encode: Callable[[list[bytes]], Awaitable[list[VisualTokens]]] = encode,
    broker: MemoryBroker | None = None,
    store: MemoryFrameStore | None = None,
    **changes: Any,
) -> AsyncGenerator[RunningFifo]:
    chosen, store = settings(**changes), store or MemoryFrameStore()
    if fresh := broker is None:
        broker = MemoryBroker()
        broker.create_topic("cameras")
    reader = MemoryVideoReader(
        broker, topic_pattern=chosen.kafka_topic_pattern, group="fifo", max_packet_bytes=LIMIT
    )
    if fresh:
        assert (
            reader.poll(0.0, 1) == []
        )  # reading has started: records are read from here on, however old they are
    fifo = FrameFifo(chosen, CONFIG, reader, store, encode, recorder=recorder())
    running = asyncio.create_task(fifo.run())
    try:
        yield RunningFifo(fifo, broker, store)
    finally:
        await fifo.close()
        await running


def live(
    num_frames: int = 15, camera: str = "door", *, ends_s: float = 0.0, **options: Any
) -> list[VideoPacket]:
    """Packets whose last one was captured `ends_s` ago."""
    packets = encoded(num_frames, **options)  # this takes its time
    start_s = time.time() - ends_s - (num_frames - 1) / 15
    return camera_packets(packets, camera=camera, start_s=start_s)


def reasons(counts: FrameFifoCounts) -> dict[str, int]:
    """Dropped frames by reason."""
    found: dict[str, int] = {}
    for (_, reason), count in counts.frames_dropped.items():
        found[reason] = found.get(reason, 0) + count
    return found
