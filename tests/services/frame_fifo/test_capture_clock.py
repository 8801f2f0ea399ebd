"""Cameras whose clocks are set, or whose own times begin again."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest

from services.frame_fifo.capture_clock import CaptureClock
from services.messages.video import VideoPacket
from services.ports.frame_store import parse_frame_id
from tests.services.frame_fifo.running_fifo import live, reasons, running_fifo, until

FPS = 15


def with_clock_set(packets: list[VideoPacket], at: int, by_s: float) -> list[VideoPacket]:
    return [replace(p, captured_s=p.captured_s + (by_s if i >= at else 0.0)) for i, p in enumerate(packets)]


@pytest.mark.parametrize("by_s", [-7200.0, -20.0, -2.0, 20.0, 7200.0])
async def test_a_camera_whose_clock_is_set_goes_on(by_s: float) -> None:
    async with running_fifo(max_lag_s=60.0) as fifo:
        packets = with_clock_set(live(60), 30, by_s)
        for packet in packets:
            fifo.send(packet)
            await fifo.wait_until_done()
        counts = fifo.counts
        assert counts.dead_letters.total() == 0
        assert reasons(counts) == {}
        assert counts.frames_stored == 20  # five a second, all the time
        ids = [parse_frame_id(frame.frame_id) for frame in fifo.store.newest("door", 100)]
        assert ids == sorted(ids)
        side = "back" if by_s < 0 else "forward"
        await until(lambda: f"its clock was set {side} by" in fifo.store.notes()["door"].problem)


async def test_a_publisher_that_begins_again_with_an_earlier_clock_is_seen_at_once() -> None:
    async with running_fifo(max_lag_s=60.0) as fifo:
        packets = live(60)
        again = [replace(p, seq=p.seq - 30, pts=p.pts - 30) for p in with_clock_set(packets, 30, -20.0)[30:]]
        for packet in packets[:30] + again:
            fifo.send(packet)
            await fifo.wait_until_done()
        assert reasons(fifo.counts) == {}
        assert fifo.counts.frames_stored >= 19
        ids = [parse_frame_id(frame.frame_id)[0] for frame in fifo.store.newest("door", 100)]
        assert ids == sorted(ids)


@pytest.mark.parametrize("begins", [True, False])
def test_a_clock_that_is_set_right_is_right_at_once(begins: bool) -> None:
    """Also after the machine of both has slept: no time has passed for the pictures, nor for us."""
    clock, now = CaptureClock(), time.time()
    packet = replace(live(1)[0], seq=0, pts=0, time_base=(1, FPS), captured_s=now - 37.0)
    for seq in range(3):
        clock.captured_s(replace(packet, seq=seq, pts=seq, captured_s=now - 37.0 + seq / FPS))
    after = replace(packet, seq=0 if begins else 3, pts=3, captured_s=now)
    assert clock.captured_s(after) == now
    assert clock.problem == ""


def test_packets_that_are_read_again_are_no_jump() -> None:
    clock = CaptureClock()
    packets = live(20)
    for packet in [*packets, *packets, packets[7]]:
        assert clock.captured_s(packet) == packet.captured_s
    assert clock.num_jumps == 0


def test_a_shift_goes_away_when_the_cameras_clock_is_right_again() -> None:
    clock, now = CaptureClock(), time.time()
    packet = replace(live(1)[0], seq=0, pts=0, time_base=(1, FPS), captured_s=now + 10.0)
    times = [clock.captured_s(packet)]
    for seq in range(1, 400):  # it was ahead, and is right from now on
        times.append(clock.captured_s(replace(packet, seq=seq, pts=seq, captured_s=now + seq * 0.001)))
        assert times[-1] > times[-2]
    assert clock.num_jumps == 1
    assert 0 < clock.shift_s < 10.0


def test_what_is_no_jump() -> None:
    packet = replace(live(1)[0], seq=0, pts=0, time_base=(1, 90_000))
    steps = [  # of the capture time and of the picture's own time, in seconds
        (60.0, 60.0),  # a gap
        (-0.3, -0.3),  # out of order
        (0.1, -(2**33) / 90_000 + 0.1),  # the camera's own times begin again
        (0.1, -4000.0),
    ]
    for captured_s, pts_s in steps:
        clock = CaptureClock()
        clock.captured_s(packet)
        after = replace(packet, seq=1, pts=round(pts_s * 90_000), captured_s=packet.captured_s + captured_s)
        assert clock.captured_s(after) == after.captured_s
        assert clock.num_jumps == 0


async def test_times_that_wrap_at_33_bits_lose_no_frame() -> None:
    async with running_fifo(max_lag_s=60.0) as fifo:
        packets = [
            replace(packet, pts=(2**33 - 15 * 6000 + 6000 * i) % 2**33, time_base=(1, 90_000))
            for i, packet in enumerate(live(30))
        ]
        for packet in packets:
            fifo.send(packet)
            await fifo.wait_until_done()
        counts = fifo.counts
        assert (counts.frames_stored, counts.packets_skipped.total()) == (10, 0)
