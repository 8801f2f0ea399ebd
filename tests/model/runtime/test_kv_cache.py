"""The ring of frames and the two caches, without a network."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from model.config import StreamChatConfig
from model.engine.frame_ring import FrameRing
from model.engine.retention import Retention, Tier
from model.runtime.kv_cache import FrameKVCache, TextKVCache
from tests.model.scenes import make_config

CPU = torch.device("cpu")


@pytest.fixture
def config() -> StreamChatConfig:
    return make_config("gqa_tied")


def keys_values(config: StreamChatConfig, value: float) -> list[tuple[Tensor, Tensor]]:
    shape = (config.vision.num_visual_tokens, config.num_key_value_heads, config.head_dim)
    return [(torch.full(shape, value + layer), torch.full(shape, -value - layer)) for layer in range(2)]


def test_a_ring_keeps_the_newest_frames():
    ring = FrameRing(0, Retention(5))
    assert ring.newest is None
    assert ring.in_order() == []
    for number in range(7):
        slot = ring.add(f"f{number}", number / 5)
        assert slot == number % 5
        assert ring.newest is not None
        assert (ring.newest.frame_id, ring.newest.number) == (f"f{number}", number)
        assert ring.is_full == (number >= 4)
    assert [frame.frame_id for _, frame in ring.in_order()] == ["f2", "f3", "f4", "f5", "f6"]
    assert [slot for slot, _ in ring.in_order()] == [2, 3, 4, 0, 1]


def test_a_ring_of_several_rates_keeps_old_frames_where_they_lie():
    ring = FrameRing(0, Retention(4, [Tier(2, 10.0)]))
    slots = {frame: ring.add(frame, captured_s) for frame, captured_s in (("a", 0.0), ("b", 60.0))}
    for number in range(6):
        ring.add(f"new{number}", 60.2 + number / 5)
    assert [frame.frame_id for _, frame in ring.in_order()] == ["a", "b", "new4", "new5"]
    assert {frame.frame_id: slot for slot, frame in ring.in_order()}.items() >= slots.items()


def test_a_copy_stays_as_it_was():
    ring = FrameRing(0, Retention(3))
    ring.add("old", 1.0)
    copy = ring.copy_to(7)
    for number in range(3):
        ring.add(f"{number}", 2.0)
    assert copy.page == 7
    assert [frame.frame_id for _, frame in copy.in_order()] == ["old"]


def test_frames_are_written_read_and_copied_per_ring_and_layer(config: StreamChatConfig):
    cache = FrameKVCache(config, 3, torch.float32, CPU)
    cache.write(1, 4, keys_values(config, 10.0))
    cache.copy(1, 2)
    cache.write(1, 4, keys_values(config, 50.0))
    for layer in range(2):
        keys, values = cache.layers[layer]
        assert keys.shape == values.shape == (3, 2, 5, 9, 16)
        assert (keys[1, :, 4] == 50.0 + layer).all()
        assert (keys[2, :, 4] == 10.0 + layer).all()
        assert (values[2, :, 4] == -10.0 - layer).all()
        assert keys[0].abs().max() == keys[:, :, :4].abs().max() == 0


def test_text_goes_to_its_pages(config: StreamChatConfig):
    cache = TextKVCache(config, 4, 8, torch.float32, CPU)
    keys = torch.arange(3.0).view(3, 1, 1).expand(3, 2, 16) + 1
    lines = cache.lines(np.array([2, 2, 0]), np.array([6, 7, 0]))
    cache.write(3, torch.from_numpy(lines), torch.cat([keys, -keys], 1))
    all_keys, all_values = cache.layers[3]
    assert (all_keys[2, :, 6] == 1.0).all()
    assert (all_keys[2, :, 7] == 2.0).all()
    assert (all_values[0, :, 0] == -3.0).all()
    assert all_keys.count_nonzero() == 3 * 2 * 16
    assert cache.layers[0][0].count_nonzero() == 0
