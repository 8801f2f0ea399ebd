"""Frames are sampled at exactly the wanted rate."""

from __future__ import annotations

import numpy as np
import pytest

from services.frame_fifo.frame_sampler import FrameSampler


@pytest.mark.parametrize("fps", [10, 12, 15, 24, 25, 29.97, 30, 60])
def test_every_source_gives_exactly_five_frames_a_second(fps: float) -> None:
    sampler = FrameSampler(5.0)
    times = [1_800_000_000 + i / fps for i in range(int(fps * 60))]
    taken = [t for t in times if sampler.accepts(t)]
    assert abs(len(taken) - 300) <= 1
    gaps = np.diff(taken)
    assert gaps.min() > 0.2 - 1 / fps
    assert gaps.max() < 0.2 + 1 / fps


def test_a_shaky_source_at_the_very_rate_loses_nothing() -> None:
    sampler = FrameSampler(5.0)
    shake = np.random.default_rng(0).uniform(-0.009, 0.009, 300)
    assert sum(sampler.accepts(100 + i * 0.2 + s) for i, s in enumerate(shake)) == 300


def test_a_slow_source_and_a_gap_are_not_made_up_for() -> None:
    sampler = FrameSampler(5.0)
    assert all(sampler.accepts(100 + i) for i in range(10))
    assert not sampler.accepts(109.05)
    assert sampler.accepts(200.0)
    assert not sampler.accepts(200.1)
    assert not sampler.accepts(150.0)
