"""What arrives in the FIFO, what is dropped and what survives an outage; and once all of it on a real broker."""

from __future__ import annotations

import asyncio
import io
import re
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from services.adapters.kafka_reader import KafkaVideoReader
from services.frame_fifo.frame_fifo import FrameFifo
from services.local.embedded_servers import Broker
from services.messages.video import Frame, VisualTokens
from services.ports.frame_store import KEPT_S, StoreLost, parse_frame_id
from services.publisher.publish import publish
from tests.services.adapters.memory_frame_store import MemoryFrameStore
from tests.services.frame_fifo.running_fifo import (
    CONFIG,
    encode,
    live,
    reasons,
    recorder,
    running_fifo,
    settings,
    until,
)
from tests.services.h264 import clip_file


async def test_frames_come_into_the_fifo_in_order_with_their_pictures() -> None:
    async with running_fifo() as fifo:
        packets = live(45, ends_s=0)
        for packet in packets:
            fifo.send(packet)
            await fifo.wait_until_done()
        counts = fifo.counts
        frames = fifo.store.newest("door", 100)
        assert counts.frames_stored == len(frames) == 15
        assert counts.frames_dropped.total() == 0
        assert [f.captured_s for f in frames] == [round(packets[i].captured_s, 3) for i in range(0, 45, 3)]
        assert all(f.shape == (9, 3) for f in frames)
        pictures = fifo.store.newer_pictures({"door": "0-0"}, block_s=0)
        assert [picture.frame_id for picture in pictures] == [f.frame_id for f in frames]
        assert all(picture.jpeg.startswith(b"\xff\xd8") for picture in pictures)
        first = np.frombuffer(frames[0].visual_tokens, "<f4").reshape(9, 3)
        assert first[0, 0] > first[8, 0] + 15  # the red square is at the upper left
        assert counts.lag == 0
        assert counts.num_cameras == 1
        state = fifo.store.cameras()[0]
        assert (state.state, state.capacity, state.num_frames) == ("live", CONFIG.fifo_frames, 15)


async def test_frames_of_all_cameras_are_encoded_together_and_the_newest_win() -> None:
    gate = asyncio.Event()
    calls: list[int] = []

    async def slow(pictures: list[bytes]) -> list[VisualTokens]:
        calls.append(len(pictures))
        await gate.wait()
        return await encode(pictures)

    async with running_fifo(encode=slow, encoder_batch=4, max_lag_s=60.0) as fifo:
        fifo.send(*live(1, "a"))
        await until(lambda: calls == [1])
        for camera in ("b", "c", "d"):
            fifo.send(*live(15, camera))  # five frames each while one call is in flight
        await until(lambda: fifo.counts.frames_sampled == 16)
        gate.set()
        counts = await fifo.wait_until_done()
        assert calls == [1, 4, 2]
        assert counts.frames_stored == 7
        assert counts.frames_dropped == {(camera, "overtaken"): 3 for camera in "bcd"}
        for camera in ("b", "c", "d"):
            ids = [parse_frame_id(f.frame_id)[1] for f in fifo.store.newest(camera, 10)]
            assert ids == [9, 12]


async def test_a_frame_that_grew_old_while_it_waited_is_passed_over_for_a_newer_one() -> None:
    gate = asyncio.Event()
    calls: list[int] = []

    async def slow(pictures: list[bytes]) -> list[VisualTokens]:
        calls.append(len(pictures))
        await gate.wait()
        return await encode(pictures)

    async with running_fifo(encode=slow, max_lag_s=1.0) as fifo:
        fifo.send(*live(1, "a"))
        await until(lambda: calls == [1])
        packets = live(4, "b")
        fifo.send(*packets)
        await until(lambda: fifo.counts.frames_sampled == 3)
        await until(lambda: time.time() > packets[-1].captured_s + 1.0)
        gate.set()
        counts = await fifo.wait_until_done()
        assert calls == [1, 1]
        assert counts.frames_dropped == {("b", "overtaken"): 1}
        assert [parse_frame_id(f.frame_id)[1] for f in fifo.store.newest("b", 10)] == [
            3
        ]  # the newest, old or not


async def test_a_camera_without_a_frame_is_announced() -> None:
    async with running_fifo() as fifo:
        fifo.send(*(replace(packet, keyframe=False) for packet in live(3, "blind")))
        await until(lambda: fifo.store.is_announced("blind"))
        assert fifo.store.cameras() == []


class FlakyStore(MemoryFrameStore):
    away = False

    def append(self, frame: Frame, *, capacity: int, keep_s: float = KEPT_S) -> bool:
        if self.away:
            raise StoreLost("no store")
        return super().append(frame, capacity=capacity, keep_s=keep_s)


async def test_a_lost_store_and_a_lost_encoder_cost_frames_and_nothing_else(
    caplog: pytest.LogCaptureFixture,
) -> None:
    encoder_away = False

    async def flaky(pictures: list[bytes]) -> list[VisualTokens]:
        if encoder_away:
            raise RuntimeError("replica died")
        return await encode(pictures)

    store = FlakyStore()
    async with running_fifo(encode=flaky, store=store) as fifo:
        packets = live(75, ends_s=0)

        async def send(first: int) -> None:
            for packet in packets[first : first + 15]:
                fifo.send(packet)
                await fifo.wait_until_done()

        await send(0)
        store.away = True
        await send(15)
        store.away = False
        await send(30)
        encoder_away = True
        await send(45)
        encoder_away = False
        await send(60)
        assert reasons(fifo.counts) == {"store_lost": 5, "encoder_failed": 5}
        assert fifo.counts.frames_stored == 15
        ids = [parse_frame_id(f.frame_id) for f in store.newest("door", 100)]
        assert ids == sorted(set(ids))
    told = [r.message for r in caplog.records if r.name == "services.frame_fifo.frame_fifo"]
    assert len(told) == 4  # each outage is told once, and its end


async def test_from_a_publisher_over_kafka_into_the_fifo(broker: Broker, unique: str, tmp_path: Path) -> None:
    store = MemoryFrameStore()
    chosen = settings(kafka_bootstrap_servers=broker.bootstrap_servers, max_packet_bytes=4 * 2**20)
    reader = KafkaVideoReader(broker.bootstrap_servers, topic_pattern=unique, group=unique)
    fifo = FrameFifo(chosen, CONFIG, reader, store, encode, recorder=recorder())
    running = asyncio.create_task(fifo.run())
    source, stop, out = str(clip_file(tmp_path, num_frames=30)), threading.Event(), io.StringIO()
    publishers = [
        asyncio.create_task(
            asyncio.to_thread(
                publish,
                source,
                camera=camera,
                bootstrap_servers=broker.bootstrap_servers,
                topic=unique,
                loop=True,
                stop=stop,
                out=out,
            )
        )
        for camera in ("door", "yard")
    ]
    try:
        await until(lambda: all(len(store.newest(camera, 16)) == 16 for camera in ("door", "yard")), 60.0)
        counts = fifo.counts()
        assert counts.dead_letters.total() == 0
        for camera in ("door", "yard"):
            times = [f.captured_s for f in store.newest(camera, 16)]
            assert np.median(np.diff(times)) == pytest.approx(0.2, abs=0.07)
            assert abs(time.time() - times[-1]) < 5
    finally:
        stop.set()
        assert await asyncio.gather(*publishers) == [0, 0]
        await fifo.close()
        await running
    assert re.search(r"door: \d+ frames, \d+\.\d fps, \d+\.\d MB, 0 dropped", out.getvalue())
