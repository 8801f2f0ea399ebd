"""The ring of frames and the text cache, without a network."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from model.cache import TEXT_CHUNK, FrameRing, TextCache
from model.config import StreamChatConfig
from tests.model.scenes import make_config

CPU = torch.device("cpu")


@pytest.fixture
def config() -> StreamChatConfig:
    return make_config("gqa_tied", max_position_embeddings=1000)


def chain(config: StreamChatConfig, value: float) -> list[tuple[Tensor, Tensor]]:
    shape = (config.vision.num_visual_tokens, config.num_key_value_heads, config.head_dim)
    return [(torch.full(shape, value + layer), torch.full(shape, -value - layer)) for layer in range(2)]


def test_a_ring_keeps_the_newest_frames(config: StreamChatConfig):
    ring = FrameRing(config, torch.float32, CPU)
    assert ring.newest is None
    assert ring.in_order() == []
    for number in range(7):
        slot = ring.add(f"f{number}", number / 5, chain(config, 10.0 * number))
        assert slot == number % 5
        assert ring.newest is not None
        assert ring.newest.frame_id == f"f{number}"
    assert [frame.frame_id for _, frame in ring.in_order()] == ["f2", "f3", "f4", "f5", "f6"]
    for slot, frame in ring.in_order():
        for layer, (keys, values) in enumerate(ring.keys_values):
            assert keys.shape == (1, 5, 9, 2, 16)
            assert (keys[0, slot] == 10.0 * frame.number + layer).all()
            assert (values[0, slot] == -10.0 * frame.number - layer).all()


def test_a_snapshot_stays_as_it_was_and_is_shared_until_the_next_frame(config: StreamChatConfig):
    ring = FrameRing(config, torch.float32, CPU)
    ring.add("old", 1.0, chain(config, 1.0))
    snapshot = ring.snapshot()
    assert ring.snapshot() is snapshot
    for number in range(5):
        ring.add(f"{number}", 2.0, chain(config, 50.0))
    assert ring.snapshot() is not snapshot
    assert [frame.frame_id for _, frame in snapshot.in_order()] == ["old"]
    assert (snapshot.keys_values[0][0][0, 0] == 1.0).all()
    assert (ring.keys_values[0][0][0] == 50.0).all()


def test_slots_are_taken_lowest_first_and_given_back(config: StreamChatConfig):
    cache = TextCache(config, torch.float32, CPU, max_dialogs=3)
    assert [cache.take() for _ in range(4)] == [0, 1, 2, None]
    cache.give_back(1)
    assert cache.take() == 1


def new(rows: int, tokens: int, value: float) -> tuple[Tensor, Tensor]:
    return torch.full((rows, 2, tokens, 16), value), torch.full((rows, 2, tokens, 16), -value)


def test_text_is_kept_per_slot_while_the_cache_grows(config: StreamChatConfig):
    cache = TextCache(config, torch.float32, CPU, max_dialogs=8)
    slots = [cache.take() or 0 for _ in range(3)]
    lengths = [TEXT_CHUNK * 2 + 3, 5, 1]
    for slot, length in zip(slots, lengths, strict=True):
        for layer in range(4):
            keys, values = cache.reading([slot], length).extend(layer, *new(1, length, slot + 1.0))
            assert keys.shape == values.shape == (1, 2, length, 16)
        cache.lengths[slot] = length
    for rows in ([0, 1, 2], [0, 2], [1, 2], [2]):
        reading = cache.reading(rows, 1)
        keys, values = reading.extend(3, *new(len(rows), 1, 99.0))
        longest = max(lengths[slot] for slot in rows) + 1
        assert keys.shape == (len(rows), 2, longest, 16)
        for row, slot in enumerate(rows):
            assert (keys[row, :, : lengths[slot]] == slot + 1.0).all()
            assert (values[row, :, : lengths[slot]] == -slot - 1.0).all()
            assert (keys[row, :, lengths[slot]] == 99.0).all()
            if reading.mask is not None:
                open_places = (reading.mask[row, 0, 0] == 0).nonzero().flatten().tolist()
                assert open_places == list(range(lengths[slot] + 1))


def test_a_chunk_of_a_prompt_reads_what_came_before_and_itself_causally(config: StreamChatConfig):
    cache = TextCache(config, torch.float32, CPU, max_dialogs=1)
    cache.take()
    assert cache.reading([0], 4).mask is None  # the first chunk: plainly causal
    cache.lengths[0] = 4
    mask = cache.reading([0], 3).mask
    assert mask is not None
    wanted = torch.ones(3, 7).tril(4).log()
    assert torch.equal(mask[0, 0], wanted)


def test_a_slot_taken_again_shows_nothing_of_its_last_owner(config: StreamChatConfig):
    cache = TextCache(config, torch.float32, CPU, max_dialogs=2)
    cache.take()
    cache.take()
    for slot, length in ((0, 9), (1, 9)):
        cache.reading([slot], length).extend(0, *new(1, length, torch.nan if slot == 0 else 1.0))
        cache.lengths[slot] = length
    cache.give_back(0)
    cache.take()
    reading = cache.reading([0, 1], 1)
    assert reading.mask is not None
    assert (reading.mask[0, 0, 0] == 0).sum() == 1
    keys, _ = reading.extend(0, *new(2, 1, 2.0))
    assert keys.isfinite().all()
