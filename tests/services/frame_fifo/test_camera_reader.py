"""Reading behind, restarts, bad packets and unknown cameras."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from services.frame_fifo.frame_fifo import FrameFifo
from services.messages.video import VideoPacket
from services.messages.video_record import RawRecord, VideoRecord, encode_packet
from services.ports.frame_store import StoreLost, parse_frame_id
from services.settings import Settings
from tests.services.adapters.memory_frame_store import MemoryFrameStore
from tests.services.adapters.memory_video_log import MemoryBroker, MemoryVideoReader
from tests.services.frame_fifo.running_fifo import (
    CONFIG,
    LIMIT,
    RunningFifo,
    encode,
    live,
    reasons,
    recorder,
    running_fifo,
    settings,
    until,
)
from tests.services.h264 import camera_packets, encoded, mjpeg_bomb


async def test_a_reader_that_is_behind_skips_whole_gops() -> None:
    packets = live(120, ends_s=0)  # 8 s, a keyframe every second
    broker = MemoryBroker()
    for packet in packets:
        broker.put("cameras", encode_packet(packet, LIMIT))
    async with running_fifo(broker=broker, max_lag_s=0.5) as fifo:
        counts = await fifo.wait_until_done()
        assert counts.packets_skipped == {("door", "late"): 105}
        newest = fifo.store.newest("door", 100)
        assert {parse_frame_id(f.frame_id)[1] for f in newest} <= set(range(105, 120))
        assert len(newest) + counts.frames_dropped.total() >= 3


async def test_the_newest_frame_of_a_camera_is_sampled_however_late() -> None:
    broker = MemoryBroker(num_partitions=1)
    units = encoded(4, fps=1, gop=2)
    for camera in ("door", "yard"):
        for packet in camera_packets(units, camera=camera, fps=1, start_s=time.time() - 6):
            broker.put("cameras", encode_packet(packet, LIMIT))
    async with running_fifo(broker=broker, max_lag_s=1e-6) as fifo:  # as late as can be
        counts = await fifo.wait_until_done()
        for camera in ("door", "yard"):
            assert [parse_frame_id(f.frame_id)[1] for f in fifo.store.newest(camera, 9)] == [3]
            assert counts.packets_skipped[camera, "late"] == 2  # the older GOP
            assert counts.frames_dropped[camera, "late"] == 1  # the newer GOP's keyframe


async def test_a_backlog_is_read_before_it_is_decoded() -> None:
    class LittleAtATime(MemoryVideoReader):
        """As a broker: the oldest first, some of it in an answer."""

        def poll(self, timeout_s: float, max_records: int) -> list[VideoRecord]:
            return super().poll(timeout_s, min(max_records, 10))

    broker, store = MemoryBroker(num_partitions=1), MemoryFrameStore()
    for packet in live(120, ends_s=0):  # 8 s, a keyframe every second
        broker.put("cameras", encode_packet(packet, LIMIT))
    reader = LittleAtATime(
        broker, topic_pattern="cameras", group="fifo", max_packet_bytes=LIMIT, fresh_s=60.0
    )
    fifo = FrameFifo(settings(max_lag_s=0.5), CONFIG, reader, store, encode, recorder=recorder())
    running = asyncio.create_task(fifo.run())
    await until(lambda: fifo.counts().packets_read == 120)
    await fifo.close()
    await running
    assert fifo.counts().packets_skipped == {("door", "late"): 105}
    assert 3 <= fifo.counts().frames_sampled <= 6


async def test_it_ends_although_a_cancellation_is_lost() -> None:
    """Python 3.11's wait_for loses one that comes in the moment in which the encoder is done."""
    began, goes_on = asyncio.Event(), asyncio.Event()

    async def encode_on(pictures: list[bytes]) -> list[Any]:
        began.set()
        await goes_on.wait()
        return await encode(pictures)

    broker, store = MemoryBroker(num_partitions=1), MemoryFrameStore()
    for packet in live(3):
        broker.put("cameras", encode_packet(packet, LIMIT))
    reader = MemoryVideoReader(broker, topic_pattern="cameras", group="fifo", max_packet_bytes=LIMIT)
    fifo = FrameFifo(settings(max_lag_s=30.0), CONFIG, reader, store, encode_on, recorder=recorder())
    running = asyncio.create_task(fifo.run())
    await asyncio.wait_for(began.wait(), 30)
    goes_on.set()
    await fifo.close()  # in the same turn of the loop
    done, _ = await asyncio.wait([running], timeout=30)
    assert done == {running}


async def test_a_long_gop_is_decoded_forward_without_its_stale_frames() -> None:
    packets = live(90, ends_s=0, gop=1000)  # one keyframe, 6 s ago
    broker = MemoryBroker()
    for packet in packets:
        broker.put("cameras", encode_packet(packet, LIMIT))
    async with running_fifo(broker=broker, max_lag_s=2.0) as fifo:
        counts = await fifo.wait_until_done()
        assert counts.packets_skipped.total() == 0
        assert counts.frames_sampled == 30
        assert 19 <= counts.frames_dropped["door", "late"] <= 29
        assert parse_frame_id(fifo.store.newest("door", 1)[0].frame_id)[1] == 87  # the last that was due


async def test_a_camera_with_a_slow_clock_is_not_late() -> None:
    async with running_fifo(max_lag_s=0.5) as fifo:
        await until(lambda: fifo.counts.lag == 0)
        for packet in live(15, ends_s=20):
            fifo.send(packet)
            await fifo.wait_until_done()
        assert fifo.counts.frames_stored == 5


async def test_a_restart_begins_at_the_keyframe_and_stores_nothing_twice() -> None:
    broker, store = MemoryBroker(num_partitions=1), MemoryFrameStore()
    packets = live(38, ends_s=0)
    other = live(20, "yard", ends_s=0)
    async with running_fifo(broker=broker, store=store) as fifo:
        for packet in packets[:20] + other + packets[20:]:
            fifo.send(packet)
            await fifo.wait_until_done()
    # The commit is the older of the keyframes that the two cameras are decoded from.
    assert broker.committed == {("fifo", ("cameras", 0)): 35}
    before = [f.frame_id for f in store.newest("door", 100)]
    async with running_fifo(broker=broker, store=store) as fifo:
        fifo.send(*live(1, "yard"))
        await until(lambda: fifo.counts.packets_read == 24)
        await until(lambda: fifo.all_done)
        counts = fifo.counts
        assert set(reasons(counts)) <= {"replayed", "overtaken"}
    after = [f.frame_id for f in store.newest("door", 100)]
    assert sorted(set(after), key=parse_frame_id) == after
    assert after[: len(before)] == before


async def test_a_silent_camera_is_forgotten() -> None:
    async with running_fifo(forget_after_s=0.3, max_cameras=1) as fifo:
        fifo.send(*live(1, "first"))
        await until(lambda: len(fifo.store.cameras()) == 1)
        await until(lambda: fifo.store.cameras() == [] and fifo.counts.num_cameras == 0)
        fifo.send(*live(1, "second"))
        await until(lambda: [c.camera for c in fifo.store.cameras()] == ["second"])


async def test_an_error_in_the_reader_does_not_end_reading() -> None:
    class BrokenReader(MemoryVideoReader):
        broken = True

        def poll(self, timeout_s: float, max_records: int) -> Any:
            if self.broken:
                self.broken = False
                raise RuntimeError("out of order")
            return super().poll(timeout_s, max_records)

    broker, store = MemoryBroker(), MemoryFrameStore()
    reader = BrokenReader(broker, topic_pattern="cameras", group="g")
    fifo = FrameFifo(settings(), CONFIG, reader, store, encode, recorder=recorder())
    running = asyncio.create_task(fifo.run())
    for packet in live(3):
        broker.put("cameras", encode_packet(packet, LIMIT))
    await until(lambda: len(store.cameras()) == 1)
    await fifo.close()
    await running


def dead_letter_reasons(fifo: RunningFifo) -> list[str]:
    return [dict(r.headers)["reason"].decode() for r in fifo.broker.topic(Settings().kafka_dead_letter_topic)]


async def test_bad_packets_become_dead_letters_and_harm_no_other_camera() -> None:
    good = live(1, "bad")[0]
    record = encode_packet(good, LIMIT)
    noise = np.random.default_rng(0).integers(0, 255, 3000, dtype=np.uint8).tobytes()
    jpeg = replace(good, codec="mjpeg", keyframe=True)
    bad: dict[str, RawRecord] = {
        "codec": replace(record, headers=tuple({**dict(record.headers), "codec": b"vp8"}.items())),
        "header codec": replace(record, headers=()),
        "access unit": replace(record, value=b"x" * (LIMIT + 1)),
        "camera id (key)": replace(record, key=b"a/b"),
        "no key": replace(record, key=None),
        "tombstone": replace(record, value=None),
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
    async with running_fifo() as fifo:
        records = [*bad.values(), *damaged]
        for i, packet in enumerate(live(30)):
            fifo.send(packet)
            if i < len(records):
                # The reader's freshness rule is about where reading starts; begun, it reads whatever comes.
                fifo.broker.put("cameras", records[i])
            await fifo.wait_until_done()
        counts = fifo.counts
        assert counts.dead_letters == {**dict.fromkeys(bad, 1), "damaged": len(damaged)}
        assert len(fifo.store.newest("door", 100)) == counts.frames_stored == 10
        assert [c.camera for c in fifo.store.cameras()] == ["door"]
        await until(lambda: len(dead_letter_reasons(fifo)) == len(records))
        texts = dead_letter_reasons(fifo)
        assert any("s in the future, wanted at most 30 s" in t for t in texts)
        assert any("cannot be decoded as mjpeg" in t for t in texts)


async def test_a_picture_of_12000_by_12000_is_a_dead_letter() -> None:
    bomb = replace(live(1, codec="mjpeg")[0], codec="mjpeg", keyframe=True, data=mjpeg_bomb())
    broker = MemoryBroker()
    chosen = settings(max_packet_bytes=4 * 2**20)
    reader = MemoryVideoReader(broker, topic_pattern="cameras", group="fifo")
    fifo = FrameFifo(chosen, CONFIG, reader, MemoryFrameStore(), encode, recorder=recorder())
    running = asyncio.create_task(fifo.run())
    broker.put("cameras", encode_packet(bomb, 4 * 2**20))
    await until(lambda: fifo.counts().dead_letters["too_large"] == 1)
    (letter,) = broker.topic(chosen.kafka_dead_letter_topic)
    assert b"got 12000x12000 (144000000 pixels), wanted at most" in dict(letter.headers)["reason"]
    await fifo.close()
    await running


async def test_only_admitted_cameras_appear() -> None:
    async with running_fifo(cameras_allowed="door|yard-.+", max_cameras=2) as fifo:
        for camera in ("door", "yard-1", "yard-2", "cellar", "doors"):
            fifo.send(*live(1, camera))
        await until(lambda: fifo.counts.dead_letters.total() == 3)
        await fifo.wait_until_done()
        assert fifo.counts.dead_letters == {"not_allowed": 2, "too_many_cameras": 1}
        assert len(fifo.store.cameras()) == 2


def at(packets: list[VideoPacket], shift_s: float) -> list[VideoPacket]:
    return [replace(packet, captured_s=packet.captured_s + shift_s) for packet in packets]


async def test_a_camera_cannot_be_spoken_for_from_another_topic() -> None:
    async with running_fifo() as fifo:
        own = live(45)
        fifo.send(*own[:15])
        await fifo.wait_until_done()
        for packet in at(own, 25.0)[:30]:  # frames that would make the owner's too old
            fifo.broker.put("cameras.garden", encode_packet(packet, LIMIT))
        await until(lambda: fifo.counts.dead_letters["other_topic"] == 30)
        fifo.send(*own[15:])
        await until(lambda: fifo.counts.packets_read == 45 and fifo.all_done)
        assert fifo.counts.dead_letters == {"other_topic": 30}
        assert set(reasons(fifo.counts)) <= {"overtaken"}
        ids = [f.frame_id for f in fifo.store.newest("door", 100)]
        assert ids
        assert ids[-1] == f"{round(own[42].captured_s * 1000)}-42"
        await until(lambda: len(dead_letter_reasons(fifo)) == 30)
        (text,) = set(dead_letter_reasons(fifo))
        assert text.startswith("camera: got door on the topic cameras.garden, wanted it on cameras,")


async def test_two_replicas_agree_whose_camera_it_is() -> None:
    store = MemoryFrameStore()
    async with running_fifo(store=store) as first, running_fifo(store=store) as second:
        packets = live(30)
        first.send(*packets[:15])
        await first.wait_until_done()
        for packet in at(packets, 5.0)[:15]:
            second.broker.put("cameras.garden", encode_packet(packet, LIMIT))
        await until(lambda: second.counts.dead_letters["other_topic"] == 15)
        first.send(*packets[15:])
        await first.wait_until_done()
        assert first.counts.dead_letters == {}
        assert second.counts.frames_sampled == 0


async def test_a_rule_decides_which_topic_a_camera_comes_from() -> None:
    rules = r"door=cameras[.]garden yard-.+=cameras"
    async with running_fifo(camera_topics=rules) as fifo:
        fifo.send(
            *live(1, "door"), *live(1, "yard-1"), *live(1, "free")
        )  # door: the first, but from a wrong topic
        await until(lambda: fifo.counts.dead_letters["other_topic"] == 1)
        for camera in ("door", "yard-1", "free"):
            fifo.broker.put("cameras.garden", encode_packet(live(1, camera)[0], LIMIT))
        await until(lambda: fifo.counts.dead_letters["other_topic"] == 3)
        await until(lambda: fifo.counts.packets_read == 3 and fifo.all_done)
        assert [c.camera for c in fifo.store.cameras()] == ["door", "free", "yard-1"]


async def test_a_camera_that_was_silent_for_long_may_move_to_another_topic() -> None:
    async with running_fifo(forget_after_s=0.3) as fifo:
        fifo.send(*live(1))
        await fifo.wait_until_done()
        await until(lambda: fifo.counts.num_cameras == 0)
        await until(lambda: fifo.store.bind({"other": "x"}, 1.0) == {"other": "x"})

        def has_moved() -> bool:
            fifo.broker.put("cameras.garden", encode_packet(live(1)[0], LIMIT))
            return fifo.counts.frames_stored == 2

        await until(has_moved)


async def test_nothing_is_stored_of_a_camera_whose_topic_nobody_can_tell() -> None:
    class LostAtFirst(MemoryFrameStore):
        lost = True

        def bind(self, topics: Mapping[str, str], for_s: float) -> dict[str, str]:
            if self.lost:
                raise StoreLost("away")
            return super().bind(topics, for_s)

    store = LostAtFirst()
    async with running_fifo(store=store) as fifo:
        fifo.send(*live(15))
        await fifo.wait_until_done()
        assert reasons(fifo.counts) == {"store_lost": 5}
        store.lost = False

        def is_stored() -> bool:
            fifo.send(*live(1))
            return fifo.counts.frames_stored > 0

        await until(is_stored)
        assert fifo.counts.dead_letters == {}


async def test_a_flood_of_bad_packets_is_counted_but_not_all_written() -> None:
    async with running_fifo() as fifo:
        for _ in range(300):
            fifo.broker.put("cameras", RawRecord(key=b"x", value=b"x", headers=(), timestamp_ms=0))
        await until(lambda: fifo.counts.dead_letters.total() == 300)
        await until(lambda: 100 <= len(dead_letter_reasons(fifo)) < 150)
