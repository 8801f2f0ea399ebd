"""What is counted is served as it was counted, and no label grows without bound."""

from __future__ import annotations

import pytest
from prometheus_client.parser import text_string_to_metric_families

from services.adapters.label_limits import MAX_CAMERAS, OTHER
from services.adapters.prometheus_recorder import PrometheusRecorder
from services.ports.metric_catalogue import (
    DEAD_LETTERS,
    FRAMES_DROPPED,
    LAG,
    METRICS,
    PACKETS_READ,
)


async def values(recorder: PrometheusRecorder) -> dict[tuple[str, ...], float]:
    """Every sample, by its name and its labels' values (labels in the order of the alphabet)."""
    families = text_string_to_metric_families((await recorder.exposition()).decode())
    return {
        (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in families
        for sample in family.samples
    }


async def test_counts_levels_and_times() -> None:
    recorder = PrometheusRecorder("frame_fifo")
    recorder.count(FRAMES_DROPPED, "door", "encode", "overtaken", by=2)
    recorder.count(FRAMES_DROPPED, "door", "encode", "overtaken")
    recorder.set(LAG, 7)
    recorder.observe(METRICS["streamchat_frame_age_at_store_seconds"], 0.12)
    found = await values(recorder)
    assert found["streamchat_frames_dropped_total", "door", "overtaken", "encode"] == 3
    assert found["streamchat_kafka_consumer_lag_messages",] == 7
    assert found["streamchat_frame_age_at_store_seconds_bucket", "0.15"] == 1
    assert found["streamchat_frame_age_at_store_seconds_bucket", "0.1"] == 0
    assert found["streamchat_frame_age_at_store_seconds_sum",] == pytest.approx(0.12)


async def test_what_an_alert_waits_for_stands_at_zero_from_the_start() -> None:
    found = await values(PrometheusRecorder("frame_fifo"))
    assert {labels[1] for labels in found if labels[0] == DEAD_LETTERS.name} == {
        reason for (reason,) in DEAD_LETTERS.zero_labels
    }


async def test_cameras_are_bounded() -> None:
    recorder = PrometheusRecorder("frame_fifo")
    for number in range(MAX_CAMERAS + 10):
        recorder.count(PACKETS_READ, f"camera-{number}")
    recorder.count(PACKETS_READ, "camera-3")
    found = await values(recorder)
    read = {labels[1]: value for labels, value in found.items() if labels[0] == PACKETS_READ.name}
    assert (len(read), read[OTHER], read["camera-3"]) == (MAX_CAMERAS + 1, 10, 2)
