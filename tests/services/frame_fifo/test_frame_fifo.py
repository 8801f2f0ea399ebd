"""FrameFifo on the in-memory log and store, and once on a real broker: what arrives, what is dropped, what survives."""

from __future__ import annotations

import asyncio
import io
import re
import threading
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from model.config import preset
from services.adapters.kafka_reader import KafkaVideoReader
from services.frame_fifo.camera_watch import in_turns
from services.frame_fifo.frame_fifo import FrameFifo
from services.frame_fifo.metrics import Counters
from services.local.embedded_servers import Broker
from services.messages.video import Frame, VideoPacket, VisualTokens
from services.messages.video_record import RawRecord, VideoRecord, encode_packet
from services.ports.frame_store import StoreLost, parse_frame_id
from services.publisher.publish import publish
from services.settings import Settings
from tests.services.adapters.memory_frame_store import MemoryFrameStore
from tests.services.adapters.memory_video_log import MemoryBroker, MemoryVideoReader
from tests.services.h264 import camera_packets, clip_file, encoded, mjpeg_bomb

CONFIG = preset("tiny")
SIZE = CONFIG.vision.image_size
LIMIT = 200_000


async def encode(pictures: list[bytes]) -> list[VisualTokens]:
    """A vision encoder that is simple but real: the mean colour of each of 3x3 patches."""
    out: list[VisualTokens] = []
    for raw in pictures:
        picture = np.frombuffer(raw, np.uint8).reshape(3, SIZE // 3, 3, SIZE // 3, 3)
        colours = picture.mean(axis=(1, 3)).reshape(9, 3).astype("<f4")
        out.append(VisualTokens(shape=(9, 3), dtype="float32", data=colours.tobytes()))
    return out


@dataclass
class Rig:
    """A FrameFifo at work on a log and a store in memory."""

    fifo: FrameFifo
    broker: MemoryBroker
    store: MemoryFrameStore

    def send(self, *packets: VideoPacket) -> None:
        for packet in packets:
            self.broker.put("cameras", encode_packet(packet, LIMIT))

    @property
    def counters(self) -> Counters:
        return self.fifo.health()

    @property
    def all_through(self) -> bool:
        """Whether every sampled frame was stored or dropped."""
        now = self.counters
        return now.frames_sampled == now.frames_stored + now.frames_dropped.total()

    async def settled(self) -> Counters:
        """Wait until everything sent was read, decoded, encoded and stored or dropped."""

        def done() -> bool:
            now = self.counters
            bad = now.dead_letters.total() - now.dead_letters["damaged"]
            return now.packets_read + bad >= len(self.broker.topic("cameras")) and self.all_through

        await until(done)
        return self.counters


async def until(done: Callable[[], bool], timeout_s: float = 30.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not done():
        assert time.monotonic() < deadline, "it did not happen in time"
        await asyncio.sleep(0.01)


def settings(**changes: Any) -> Settings:
    values: dict[str, Any] = {"max_packet_bytes": LIMIT} | changes
    return Settings(**values)


@asynccontextmanager
async def at_work(
    *,
    encode: Callable[[list[bytes]], Awaitable[list[VisualTokens]]] = encode,
    broker: MemoryBroker | None = None,
    store: MemoryFrameStore | None = None,
    **changes: Any,
) -> AsyncGenerator[Rig]:
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
        )  # reading has begun: whatever comes now is read, however old it says it is
    fifo = FrameFifo(chosen, CONFIG, reader, store, encode)
    running = asyncio.create_task(fifo.run())
    try:
        yield Rig(fifo, broker, store)
    finally:
        await fifo.close()
        await running


def live(
    num_frames: int = 15, camera: str = "door", *, ends_s: float = 0.0, **options: Any
) -> list[VideoPacket]:
    """Packets whose last one was captured `ends_s` ago."""
    start_s = time.time() - ends_s - (num_frames - 1) / 15
    return camera_packets(encoded(num_frames, **options), camera=camera, start_s=start_s)


def reasons(counters: Counters) -> dict[str, int]:
    """Dropped frames by reason."""
    found: dict[str, int] = {}
    for (_, reason), count in counters.frames_dropped.items():
        found[reason] = found.get(reason, 0) + count
    return found


# -- the way of a frame --


async def test_frames_come_into_the_fifo_in_order_with_their_pictures() -> None:
    async with at_work() as rig:
        packets = live(45, ends_s=0)
        for packet in packets:
            rig.send(packet)
            await rig.settled()
        counters = rig.counters
        frames = rig.store.newest("door", 100)
        assert counters.frames_stored == len(frames) == 15
        assert counters.frames_dropped.total() == 0
        assert [f.captured_s for f in frames] == [round(packets[i].captured_s, 3) for i in range(0, 45, 3)]
        assert all(f.jpeg.startswith(b"\xff\xd8") and f.shape == (9, 3) for f in frames)
        first = np.frombuffer(frames[0].visual_tokens, "<f4").reshape(9, 3)
        assert first[0, 0] > first[8, 0] + 15  # the red square is at the upper left
        assert counters.lag == 0
        assert counters.num_cameras == 1
        state = rig.store.cameras()[0]
        assert (state.state, state.capacity, state.num_frames) == ("live", CONFIG.fifo_frames, 15)


async def test_frames_of_all_cameras_are_encoded_together_and_the_newest_win() -> None:
    gate = asyncio.Event()
    calls: list[int] = []

    async def slow(pictures: list[bytes]) -> list[VisualTokens]:
        calls.append(len(pictures))
        await gate.wait()
        return await encode(pictures)

    async with at_work(encode=slow, encoder_batch=4, max_lag_s=60.0) as rig:
        rig.send(*live(1, "a"))
        await until(lambda: calls == [1])
        for camera in ("b", "c", "d"):
            rig.send(*live(15, camera))  # five frames each while one call is in flight
        await until(lambda: rig.counters.frames_sampled == 16)
        gate.set()
        counters = await rig.settled()
        assert calls == [1, 4, 2]
        assert counters.frames_stored == 7
        assert counters.frames_dropped == {(camera, "overtaken"): 3 for camera in "bcd"}
        for camera in ("b", "c", "d"):
            ids = [parse_frame_id(f.frame_id)[1] for f in rig.store.newest(camera, 10)]
            assert ids == [9, 12]


async def test_a_frame_that_grew_old_while_it_waited_is_passed_over_for_a_newer_one() -> None:
    gate = asyncio.Event()
    calls: list[int] = []

    async def slow(pictures: list[bytes]) -> list[VisualTokens]:
        calls.append(len(pictures))
        await gate.wait()
        return await encode(pictures)

    async with at_work(encode=slow, max_lag_s=1.0) as rig:
        rig.send(*live(1, "a"))
        await until(lambda: calls == [1])
        packets = live(4, "b")
        rig.send(*packets)
        await until(lambda: rig.counters.frames_sampled == 3)
        await until(lambda: time.time() > packets[-1].captured_s + 1.0)
        gate.set()
        counters = await rig.settled()
        assert calls == [1, 1]
        assert counters.frames_dropped == {("b", "overtaken"): 1}
        assert [parse_frame_id(f.frame_id)[1] for f in rig.store.newest("b", 10)] == [
            3
        ]  # the newest, old or not


async def test_what_piled_up_of_one_camera_does_not_keep_others_waiting() -> None:
    broker = MemoryBroker(num_partitions=1)
    for packet in (*live(30, "pile", ends_s=5.0), *live(1, "c"), *live(2, "b", ends_s=1.0)):
        broker.put("cameras", encode_packet(packet, LIMIT))
    broker.put("cameras", RawRecord(key=b"pile", value=b"x", headers=(), timestamp_ms=0))
    reader = MemoryVideoReader(broker, topic_pattern="cameras", group="g", max_packet_bytes=LIMIT)
    records = in_turns(reader.poll(0.1, 100))
    cameras = [record.key.decode() for record in records]
    assert cameras[:5] == ["pile", "b", "c", "pile", "b"]
    assert [record.offset for record in records if record.key == b"pile"] == [*range(30), 33]
    assert [record.offset for record in records if record.key == b"b"] == [31, 32]


async def test_the_reader_behind_skips_whole_gops_to_the_newest() -> None:
    packets = live(120, ends_s=0)  # 8 s, a keyframe every second
    broker = MemoryBroker()
    for packet in packets:
        broker.put("cameras", encode_packet(packet, LIMIT))
    async with at_work(broker=broker, max_lag_s=0.5) as rig:
        counters = await rig.settled()
        assert counters.packets_skipped == {("door", "late"): 105}
        newest = rig.store.newest("door", 100)
        assert {parse_frame_id(f.frame_id)[1] for f in newest} <= set(range(105, 120))
        assert len(newest) + counters.frames_dropped.total() >= 3


async def test_a_cameras_newest_frame_is_looked_at_however_late() -> None:
    broker = MemoryBroker(num_partitions=1)
    units = encoded(4, fps=1, gop=2)
    for camera in ("door", "yard"):
        for packet in camera_packets(units, camera=camera, fps=1, start_s=time.time() - 6):
            broker.put("cameras", encode_packet(packet, LIMIT))
    async with at_work(broker=broker, max_lag_s=1e-6) as rig:  # as late as can be
        counters = await rig.settled()
        for camera in ("door", "yard"):
            assert [parse_frame_id(f.frame_id)[1] for f in rig.store.newest(camera, 9)] == [3]
            assert counters.packets_skipped[camera, "late"] == 2  # the older GOP
            assert counters.frames_dropped[camera, "late"] == 1  # the newer GOP's keyframe


async def test_a_backlog_is_read_before_it_is_decoded() -> None:
    class LittleAtATime(MemoryVideoReader):
        """As a broker: the oldest first, some of it in an answer."""

        def poll(self, timeout_s: float, max_records: int) -> list[VideoRecord]:
            return super().poll(timeout_s, min(max_records, 10))

    broker, store = MemoryBroker(num_partitions=1), MemoryFrameStore()
    for packet in live(120, ends_s=0):  # 8 s, a keyframe every second
        broker.put("cameras", encode_packet(packet, LIMIT))
    reader = LittleAtATime(broker, topic_pattern="cameras", group="fifo", max_packet_bytes=LIMIT)
    fifo = FrameFifo(settings(max_lag_s=0.5), CONFIG, reader, store, encode)
    running = asyncio.create_task(fifo.run())
    await until(lambda: fifo.health().packets_read == 120)
    await fifo.close()
    await running
    assert fifo.health().packets_skipped == {("door", "late"): 105}
    assert 3 <= fifo.health().frames_sampled <= 6


async def test_a_long_gop_is_decoded_forward_without_its_stale_frames() -> None:
    packets = live(90, ends_s=0, gop=1000)  # one keyframe, 6 s ago
    broker = MemoryBroker()
    for packet in packets:
        broker.put("cameras", encode_packet(packet, LIMIT))
    async with at_work(broker=broker, max_lag_s=2.0) as rig:
        counters = await rig.settled()
        assert counters.packets_skipped.total() == 0
        assert counters.frames_sampled == 30
        assert 19 <= counters.frames_dropped["door", "late"] <= 29
        assert parse_frame_id(rig.store.newest("door", 1)[0].frame_id)[1] == 87  # the last that was due


async def test_a_slow_clock_is_no_lateness() -> None:
    async with at_work(max_lag_s=0.5) as rig:
        await until(lambda: rig.counters.lag == 0)
        for packet in live(15, ends_s=20):
            rig.send(packet)
            await rig.settled()
        assert rig.counters.frames_stored == 5


async def test_a_restart_begins_at_the_keyframe_and_stores_nothing_twice() -> None:
    broker, store = MemoryBroker(num_partitions=1), MemoryFrameStore()
    packets = live(38, ends_s=0)
    other = live(20, "yard", ends_s=0)
    async with at_work(broker=broker, store=store) as rig:
        for packet in packets[:20] + other + packets[20:]:
            rig.send(packet)
            await rig.settled()
    # The commit is the older of the keyframes that the two cameras are decoded from.
    assert broker.committed == {("fifo", ("cameras", 0)): 35}
    before = [f.frame_id for f in store.newest("door", 100)]
    async with at_work(broker=broker, store=store) as rig:
        rig.send(*live(1, "yard"))
        await until(lambda: rig.counters.packets_read == 24)
        await until(lambda: rig.all_through)
        counters = rig.counters
        assert set(reasons(counters)) <= {"replayed", "overtaken"}
    after = [f.frame_id for f in store.newest("door", 100)]
    assert sorted(set(after), key=parse_frame_id) == after
    assert after[: len(before)] == before


async def test_a_silent_camera_is_forgotten() -> None:
    async with at_work(forget_after_s=0.3, max_cameras=1) as rig:
        rig.send(*live(1, "first"))
        await until(lambda: len(rig.store.cameras()) == 1)
        await until(lambda: rig.store.cameras() == [] and rig.counters.num_cameras == 0)
        rig.send(*live(1, "second"))
        await until(lambda: [c.camera for c in rig.store.cameras()] == ["second"])


# -- what is wrong with a packet --


def letter_reasons(rig: Rig) -> list[str]:
    return [dict(r.headers)["reason"].decode() for r in rig.broker.topic(Settings().kafka_dead_letter_topic)]


async def test_bad_packets_are_counted_letters_and_the_others_see_nothing_of_it() -> None:
    good = live(1, "bad")[0]
    record = encode_packet(good, LIMIT)
    noise = np.random.default_rng(0).integers(0, 255, 3000, dtype=np.uint8).tobytes()
    jpeg = replace(good, codec="mjpeg", keyframe=True)
    bad: dict[str, RawRecord] = {
        "codec": replace(record, headers=tuple({**dict(record.headers), "codec": b"vp8"}.items())),
        "header codec": replace(record, headers=()),
        "access unit": replace(record, value=b"x" * (LIMIT + 1)),
        "camera id (key)": replace(record, key=b"a/b"),
        "future": replace(record, timestamp_ms=record.timestamp_ms + 3_600_000),
        "past": replace(record, timestamp_ms=record.timestamp_ms - 3_600_000),
        "timestamp": replace(record, timestamp_ms=5),
    }
    damaged = [
        encode_packet(replace(good, camera="cut", data=good.data[: len(good.data) // 2]), LIMIT),
        encode_packet(replace(good, camera="noise", data=noise), LIMIT),
        encode_packet(replace(jpeg, camera="noise-jpeg", data=noise), LIMIT),
        encode_packet(replace(jpeg, camera="no-codec", data=b"\0\0\0\1"), LIMIT),
    ]
    async with at_work() as rig:
        records = [*bad.values(), *damaged]
        for i, packet in enumerate(live(30)):
            rig.send(packet)
            if i < len(records):
                # The reader's freshness rule is about where reading starts; begun, it reads whatever comes.
                rig.broker.put("cameras", records[i])
            await rig.settled()
        counters = rig.counters
        assert counters.dead_letters == {**dict.fromkeys(bad, 1), "damaged": len(damaged)}
        assert len(rig.store.newest("door", 100)) == counters.frames_stored == 10
        assert [c.camera for c in rig.store.cameras()] == ["door"]
        await until(lambda: len(letter_reasons(rig)) == len(records))
        texts = letter_reasons(rig)
        assert any("s in the future, wanted at most 30 s" in t for t in texts)
        assert any("cannot be decoded as mjpeg" in t for t in texts)


async def test_a_picture_of_12000_by_12000_is_a_letter() -> None:
    bomb = replace(live(1, codec="mjpeg")[0], codec="mjpeg", keyframe=True, data=mjpeg_bomb())
    broker = MemoryBroker()
    chosen = settings(max_packet_bytes=4 * 2**20)
    reader = MemoryVideoReader(broker, topic_pattern="cameras", group="fifo")
    fifo = FrameFifo(chosen, CONFIG, reader, MemoryFrameStore(), encode)
    running = asyncio.create_task(fifo.run())
    broker.put("cameras", encode_packet(bomb, 4 * 2**20))
    await until(lambda: fifo.health().dead_letters["damaged"] == 1)
    await fifo.close()
    await running


async def test_only_admitted_cameras_appear() -> None:
    async with at_work(cameras_allowed="door|yard-.+", max_cameras=2) as rig:
        for camera in ("door", "yard-1", "yard-2", "cellar", "doors"):
            rig.send(*live(1, camera))
        await until(lambda: rig.counters.dead_letters.total() == 3)
        await rig.settled()
        assert rig.counters.dead_letters == {"not_allowed": 2, "too_many_cameras": 1}
        assert len(rig.store.cameras()) == 2


async def test_a_camera_without_a_frame_is_announced() -> None:
    async with at_work() as rig:
        rig.send(*(replace(packet, keyframe=False) for packet in live(3, "blind")))
        await until(lambda: rig.store.is_announced("blind"))
        assert rig.store.cameras() == []


async def test_a_flood_of_bad_packets_is_counted_but_not_all_written() -> None:
    async with at_work() as rig:
        for _ in range(300):
            rig.broker.put("cameras", RawRecord(key=b"x", value=b"x", headers=(), timestamp_ms=0))
        await until(lambda: rig.counters.dead_letters.total() == 300)
        await until(lambda: 100 <= len(letter_reasons(rig)) < 150)


# -- when others are away --


class FlakyStore(MemoryFrameStore):
    away = False

    def append(self, frame: Frame, *, capacity: int) -> bool:
        if self.away:
            raise StoreLost("no store")
        return super().append(frame, capacity=capacity)


async def test_a_lost_store_and_a_lost_encoder_cost_frames_and_nothing_else(
    caplog: pytest.LogCaptureFixture,
) -> None:
    encoder_away = False

    async def flaky(pictures: list[bytes]) -> list[VisualTokens]:
        if encoder_away:
            raise RuntimeError("replica died")
        return await encode(pictures)

    store = FlakyStore()
    async with at_work(encode=flaky, store=store) as rig:
        packets = live(75, ends_s=0)

        async def send(first: int) -> None:
            for packet in packets[first : first + 15]:
                rig.send(packet)
                await rig.settled()

        await send(0)
        store.away = True
        await send(15)
        store.away = False
        await send(30)
        encoder_away = True
        await send(45)
        encoder_away = False
        await send(60)
        assert reasons(rig.counters) == {"store_lost": 5, "encoder_failed": 5}
        assert rig.counters.frames_stored == 15
        ids = [parse_frame_id(f.frame_id) for f in store.newest("door", 100)]
        assert ids == sorted(set(ids))
    told = [r.message for r in caplog.records if r.name == "services.frame_fifo.frame_fifo"]
    assert len(told) == 4  # each outage is told once, and its end


async def test_a_reader_that_breaks_its_promise_does_not_end_the_watch() -> None:
    class BrokenReader(MemoryVideoReader):
        broken = True

        def poll(self, timeout_s: float, max_records: int) -> Any:
            if self.broken:
                self.broken = False
                raise RuntimeError("out of order")
            return super().poll(timeout_s, max_records)

    broker, store = MemoryBroker(), MemoryFrameStore()
    fifo = FrameFifo(
        settings(), CONFIG, BrokenReader(broker, topic_pattern="cameras", group="g"), store, encode
    )
    running = asyncio.create_task(fifo.run())
    for packet in live(3):
        broker.put("cameras", encode_packet(packet, LIMIT))
    await until(lambda: len(store.cameras()) == 1)
    await fifo.close()
    await running


# -- a real broker --


async def test_from_a_publisher_over_kafka_into_the_fifo(broker: Broker, unique: str, tmp_path: Path) -> None:
    store = MemoryFrameStore()
    chosen = settings(kafka_bootstrap_servers=broker.bootstrap_servers, max_packet_bytes=4 * 2**20)
    reader = KafkaVideoReader(broker.bootstrap_servers, topic_pattern=unique, group=unique)
    fifo = FrameFifo(chosen, CONFIG, reader, store, encode)
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
        counters = fifo.health()
        assert counters.dead_letters.total() == 0
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
