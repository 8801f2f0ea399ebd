"""What arrives in the FIFO, what is dropped and what survives an outage; and once all of it on a real broker."""

from __future__ import annotations

import asyncio
import io
import re
import threading
import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from services.adapters.kafka_reader import KafkaVideoReader
from services.adapters.kafka_writer import KafkaVideoWriter, remake_topics
from services.frame_fifo import frame_fifo
from services.frame_fifo.frame_fifo import FrameFifo
from services.local.embedded_servers import Broker
from services.messages.video import CameraNote, Frame, VisualTokens
from services.messages.video_record import RawRecord, VideoRecord
from services.ports.frame_store import KEPT_S, StoreLost, parse_frame_id
from services.processes.polling import wait_until
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
from tests.services.h264 import camera_packets, clip_file, encoded


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
        await until(lambda: "blind" in fifo.store.notes())
        assert fifo.store.cameras() == []


async def test_two_cameras_with_one_id_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frame_fifo, "ANNOUNCE_EVERY_S", 0.05)
    async with running_fifo() as fifo:
        for packet in live(4):
            fifo.send(replace(packet, name="Yard"))
        await until(lambda: fifo.store.notes().get("door") == CameraNote(name="Yard"))
        for packet in live(4):
            fifo.send(replace(packet, name="yard!"))
        wanted = "two cameras have this id: 'Yard' and 'yard!'; one needs another"
        await until(lambda: fifo.store.notes()["door"].problem == wanted)


async def test_a_picture_above_the_cap_is_the_cameras_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frame_fifo, "ANNOUNCE_EVERY_S", 0.05)
    async with running_fifo(max_pixels=64) as fifo:
        fifo.send(*live(4))
        await until(
            lambda: "wanted at most 64 pixels" in fifo.store.notes().get("door", CameraNote()).problem
        )
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


async def film(log: KafkaVideoWriter, until_s: float) -> None:
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
    camera = asyncio.create_task(film(log, time.monotonic() + 4.0))
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
