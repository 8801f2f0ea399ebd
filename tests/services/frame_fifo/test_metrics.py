"""What a FrameFifo counts and reports of packets, frames, its reader and its store."""

from __future__ import annotations

import time

import pytest

from services.adapters.prometheus_recorder import PrometheusRecorder
from services.frame_fifo import metrics
from services.ports.video_log import ReaderStatus
from tests.services.adapters.test_prometheus_recorder import values


@pytest.fixture
def recorder() -> PrometheusRecorder:
    return PrometheusRecorder("frame_fifo")


@pytest.fixture
def reported(recorder: PrometheusRecorder) -> metrics.FrameFifoMetrics:
    return metrics.FrameFifoMetrics(recorder)


async def test_a_new_camera_stands_at_zero(
    recorder: PrometheusRecorder, reported: metrics.FrameFifoMetrics
) -> None:
    reported.packet_read("a")
    found = await values(recorder)
    assert found[metrics.CAPTURE_TIME_JUMPS.name, "a"] == 0
    for reason in metrics.SKIP_REASONS:
        assert found[metrics.PACKETS_SKIPPED.name, "a", reason] == 0
    for reason, stage in metrics.DROP_STAGES.items():
        assert found[metrics.FRAMES_DROPPED.name, "a", reason, stage] == 0


async def test_packets_and_frames_are_counted(
    recorder: PrometheusRecorder, reported: metrics.FrameFifoMetrics
) -> None:
    for _ in range(3):
        reported.packet_read("a")
    reported.capture_skew("a", -2.5)
    reported.time_jumped("a")
    reported.packet_skipped("a", "late")
    reported.frame_sampled()
    reported.frame_sampled()
    captured_s = time.time() + 5  # a clock that is ahead
    reported.frame_stored("a", captured_s)
    reported.frame_dropped("a", "encoder_failed")
    reported.dead_letter("past")
    found = await values(recorder)
    assert found[metrics.PACKETS_READ.name, "a"] == 3
    assert found[metrics.CAPTURE_SKEW.name, "a"] == -2.5
    assert found[metrics.CAPTURE_TIME_JUMPS.name, "a"] == 1
    assert found[metrics.PACKETS_SKIPPED.name, "a", "late"] == 1
    assert found[metrics.FRAMES_INGESTED.name, "a"] == 1
    assert found[f"{metrics.FRAME_AGE_AT_STORE.name}_count",] == 1
    assert found[f"{metrics.FRAME_AGE_AT_STORE.name}_sum",] == 0
    assert found[metrics.NEWEST_FRAME.name, "a"] == captured_s
    assert found[metrics.FRAMES_DROPPED.name, "a", "encoder_failed", "encode"] == 1
    assert found[metrics.DEAD_LETTERS.name, "past"] == 1
    counts = reported.counts()
    assert (counts.packets_read, counts.frames_sampled, counts.frames_stored) == (3, 2, 1)
    assert counts.packets_skipped == {("a", "late"): 1}
    assert counts.frames_dropped == {("a", "encoder_failed"): 1}
    assert counts.dead_letters == {"past": 1}
    reported.packet_skipped("a", "late")
    assert counts.packets_skipped == {("a", "late"): 1}  # a copy


async def test_the_reader_reports_once_a_second(
    recorder: PrometheusRecorder, reported: metrics.FrameFifoMetrics, monkeypatch: pytest.MonkeyPatch
) -> None:
    now_s = 100.0
    monkeypatch.setattr(metrics.time, "monotonic", lambda: now_s)
    reported.update_reader(lag=7, num_cameras=2, up={"a", "b"})
    now_s += 0.9
    reported.update_reader(lag=8, num_cameras=1, up={"b"})
    found = await values(recorder)
    assert (found[metrics.LAG.name,], found[metrics.CAMERA_UP.name, "a"]) == (7, 1)
    assert (reported.counts().lag, reported.counts().num_cameras) == (8, 1)
    now_s += 0.1
    reported.update_reader(lag=9, num_cameras=1, up={"b"})
    found = await values(recorder)
    assert found[metrics.LAG.name,] == 9
    assert [found[metrics.CAMERA_UP.name, camera] for camera in "ab"] == [0, 1]


async def test_a_readers_status_is_reported_as_what_is_new(
    recorder: PrometheusRecorder, reported: metrics.FrameFifoMetrics
) -> None:
    reported.update_status(
        ReaderStatus(
            standstill_s=3.0,
            lag={("cameras", 0): 5, ("cameras", 1): 2},
            num_failing=1,
            num_skipped={"codec": 2},
            num_rebuilds=1,
        )
    )
    reported.update_status(
        ReaderStatus(lag={("cameras", 0): 4}, num_skipped={"codec": 2, "damaged": 1}, num_rebuilds=3)
    )
    found = await values(recorder)
    skipped = {reason: found[metrics.READER_SKIPPED.name, reason] for reason in ("codec", "damaged")}
    assert skipped == {"codec": 2, "damaged": 1}
    assert found[metrics.READER_REBUILDS.name,] == 3
    assert found[metrics.READER_STANDSTILL.name,] == 0
    assert found[metrics.READER_FAILING.name,] == 0
    lags = {labels[1:]: value for labels, value in found.items() if labels[0] == metrics.READER_LAG.name}
    assert set(lags.values()) == {4, 0}


async def test_the_store_is_reported_with_the_cameras_that_have_gone(
    recorder: PrometheusRecorder, reported: metrics.FrameFifoMetrics
) -> None:
    reported.update_store({"a": 16, "b": 3}, 16, 1000, 5000)
    reported.update_store({"b": 4}, 16, 900, 5000)
    found = await values(recorder)
    assert [found[metrics.FIFO_ENTRIES.name, camera] for camera in "ab"] == [0, 4]
    assert found[metrics.FIFO_CAPACITY.name,] == 16
    assert found[metrics.FIFO_BYTES.name,] == 900
    assert found[metrics.FIFO_LIMIT_BYTES.name,] == 5000
