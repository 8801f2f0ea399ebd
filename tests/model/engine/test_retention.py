"""Which frames a ring keeps: one rate, and several."""

from __future__ import annotations

import numpy as np
import pytest

from model.engine.retention import Retention, Tier
from model.network.clock import visibility


def kept(retention: Retention, times: list[float]) -> list[float]:
    row = retention.visible(times)[-1]
    return [time for time, is_kept in zip(times, row, strict=True) if is_kept]


def test_one_rate_keeps_the_newest_as_training_sees_them():
    times = np.cumsum(np.random.default_rng(0).choice([0.1, 0.2, 0.7], 40))
    rows = Retention(8).visible(times)
    assert not rows[0].any()
    assert (rows[1:] == visibility(times, times, 8)).all()


def test_older_seconds_are_thinner_and_reach_much_further_back():
    times = [number / 4 for number in range(4 * 200)]
    retention = Retention(16, [Tier(6, 1.0), Tier(4, 20.0)])
    held = kept(retention, times)
    assert len(held) == 16
    newest, seconds, minutes = held[10:], held[4:10], held[:4]
    assert newest == times[-6:]
    assert [time % 1.0 for time in seconds] == [0.0] * 6  # the first frame of each second
    assert np.diff(seconds).tolist() == [1.0] * 5
    assert [time % 20.0 for time in minutes] == [0.0] * 4
    assert np.diff(minutes).tolist() == [20.0] * 3
    assert newest[0] - seconds[-1] <= 1.0
    assert seconds[0] - minutes[-1] <= 20.0


def test_nothing_makes_way_before_the_ring_is_full():
    times = [number / 4 for number in range(16)]
    assert kept(Retention(16, [Tier(6, 1.0)]), times) == times


def test_what_is_kept_does_not_hang_on_when_the_camera_was_silent():
    times = [0.0, 0.25, 0.5, 60.0, 60.25, 60.5, 60.75, 61.0, 61.25]
    assert kept(Retention(4, [Tier(2, 10.0)]), times) == [0.0, 60.0, 61.0, 61.25]


def test_the_setting_is_read():
    retention = Retention.parse("10@1, 6@10.5", 32)
    assert retention.tiers == (Tier(10, 1.0), Tier(6, 10.5))
    assert retention.num_dense == 16
    assert Retention.parse("", 32).tiers == ()


@pytest.mark.parametrize("text", ["10", "a@1", "3@x", "32@1", "4@0", "0@1", "4@2,4@1", "@"])
def test_a_wrong_setting_says_what_is_wanted(text: str):
    with pytest.raises(ValueError, match="wanted"):
        Retention.parse(text, 32)
