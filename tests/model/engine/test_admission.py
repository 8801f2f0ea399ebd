"""Which dialogs are admitted, which give way, and what a full context window drops."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from model.config import preset
from model.engine.admission import EngineFull
from model.engine.engine import Engine
from model.engine.options import DialogOptions
from model.network.streamchat import StreamChat
from tests.model.engine.watched_cameras import CLOSE, PROMPT, with_cameras


def test_an_answer_ends_where_the_text_cache_is_full(small: StreamChat):
    engine = with_cameras(small, "a")
    limit = small.config.max_position_embeddings
    engine.open_dialog("d", "a", [1] * (limit - 3), DialogOptions(max_tokens=100))
    finished = [engine.step(["d"])[0].finish_reason for _ in range(3)]
    assert finished == [None, None, "length"]


@pytest.mark.parametrize("token_id", [-1, 10**6])
def test_a_bias_is_for_a_token_of_the_vocabulary(small: StreamChat, token_id: int):
    engine = with_cameras(small, "a")
    engine.open_dialog("good", "a", PROMPT, DialogOptions(logit_bias=((0, 1.0),)))
    with pytest.raises(ValueError, match=f"logit_bias: got token {token_id}, wanted 0 to"):
        engine.open_dialog("bad", "a", PROMPT, DialogOptions(logit_bias=((0, 1.0), (token_id, 1.0))))


def test_places_are_taken_and_given_back(small: StreamChat):
    engine = with_cameras(small, "a", max_dialogs=3)
    for number in range(3):
        engine.open_dialog(str(number), "a", PROMPT, DialogOptions())
    with pytest.raises(EngineFull, match="3 dialogs"):
        engine.open_dialog("more", "a", PROMPT, DialogOptions())
    wanted = engine.logits(["2"])
    engine.close_dialog("0")
    engine.open_dialog("more", "a", PROMPT * 20, DialogOptions())
    torch.testing.assert_close(engine.logits(["2", "more"])[:1], wanted, **CLOSE)
    for dialog in ("1", "2", "more"):
        engine.close_dialog(dialog)
    engine.drop_camera("a")
    assert engine.cameras == {}


def test_a_dialog_that_cannot_be_read_gives_its_place_back(small: StreamChat):
    engine = with_cameras(small, "a", max_dialogs=1)
    with pytest.raises(RuntimeError, match="for index"):
        engine.open_dialog("d", "a", [*PROMPT[:1], 1.5, 2], DialogOptions())  # pyright: ignore[reportArgumentType]
    assert not engine.dialogs
    assert engine.text_pages.allocated_bytes == 0
    engine.open_dialog("d", "a", PROMPT, DialogOptions())


def test_oldest_turns_are_dropped_where_the_window_is_full(small: StreamChat):
    """Turns of 40 tokens in a window of 100, with 6 of instructions: pages stay bounded over an hour of turns."""
    model = StreamChat(replace(small.config, max_position_embeddings=100))
    model.load_state_dict(small.state_dict())
    engine = Engine(model, page_tokens=8, max_dialogs=1)
    engine.add_camera("a")
    engine.open_dialog("d", "a", [3] * 6 + PROMPT * 5, DialogOptions(max_tokens=20), num_pinned_tokens=6)
    held: list[int] = []
    for _ in range(30):
        while engine.step(["d"])[0].finish_reason is None:
            pass
        held.append(engine.text_pages.held_bytes(engine.dialogs["d"]))
        engine.start_turn("d", PROMPT * 5)
    dialog = engine.dialogs["d"]
    assert dialog.num_computed_tokens > 1000
    assert len(set(held[5:])) <= 3
    assert max(held) <= engine.text_pages.size_bytes
    assert dialog.dropped_tokens == range(6, dialog.turns[0].first_token)
    assert dialog.num_cached_tokens < 100
    assert dialog.pages.count(-1) > 100


def test_a_dropped_turn_leaves_no_trace_and_nothing_is_read_again(small: StreamChat):
    """What is left are the newer tokens' own keys and values: bit for bit those it had, wherever the old ones went."""
    model = StreamChat(replace(small.config, max_position_embeddings=60))
    model.load_state_dict(small.state_dict())
    logits: list[Tensor] = []
    for poison in (False, True):
        engine = Engine(model, page_tokens=8)
        engine.add_camera("a")
        engine.open_dialog("d", "a", PROMPT * 5, DialogOptions(max_tokens=4), num_pinned_tokens=2)
        for _ in range(4):
            engine.append_token("d", 7)
        engine.start_turn("d", PROMPT * 8)
        dialog = engine.dialogs["d"]
        for _ in range(6):
            engine.append_token("d", 9) if dialog.finish_reason is None else None
        assert dialog.dropped_tokens == range(0)
        engine.start_turn("d", PROMPT * 2)
        assert dialog.dropped_tokens == range(2, 24)
        if poison:
            cache = engine._runner.text_cache  # pyright: ignore[reportPrivateUsage]
            for keys, values in cache.layers:
                with torch.inference_mode():
                    keys[dialog.pages[0], :, 2:] = values[dialog.pages[0], :, 2:] = 1e4
        logits.append(engine.logits(["d"]))
    assert torch.equal(logits[0], logits[1])


def test_dialogs_at_rest_make_way_for_new_ones(small: StreamChat):
    page = 8 * 4 * 2 * 2 * 16 * 4  # tokens, layers, keys and values, groups, head size, bytes
    rings = 2 * 2 * 2 * 5 * 9 * 16 * 4
    engine = with_cameras(small, "a", page_tokens=8, max_cameras=1, cache_bytes=rings + 16 * page)
    for name in ("old", "young"):
        engine.open_dialog(name, "a", PROMPT, DialogOptions(max_tokens=20))
        engine.step([name])
        engine.suspend_dialog(name)
    assert engine.text_pages.allocated_bytes == 2 * page
    assert [engine.text_pages.held_bytes(dialog) for dialog in engine.dialogs.values()] == [page, page]
    engine.open_dialog("long", "a", PROMPT * 24, DialogOptions(max_tokens=20))  # 15 pages
    assert list(engine.dialogs) == ["young", "long"]
    with pytest.raises(EngineFull, match="no memory"):
        engine.open_dialog("more", "a", PROMPT, DialogOptions(max_tokens=20))
    with pytest.raises(EngineFull, match="no memory"):
        engine.start_turn("young", PROMPT, DialogOptions(max_tokens=200))
    assert list(engine.dialogs) == ["young", "long"]
    assert len(engine.step(["long"])) == 1


def test_the_14b_model_fits_an_80_gb_card_with_its_caches():
    """In bf16, made without memory: all weights, 8 cameras of 32 frames, and text for 64 dialogs of 2048 tokens."""
    config = preset("14b")
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device("meta"):
            model = StreamChat(config).eval()
    finally:
        torch.set_default_dtype(before)
    weights = sum(parameter.numel() * 2 for parameter in model.parameters())
    engine = Engine(model, max_dialogs=64, max_cameras=8, page_tokens=256)
    assert engine.frame_pages.page_bytes == 12 * 2 * 8 * 32 * 256 * 128 * 2
    assert 34e9 < weights < 37e9
    limit_bytes = engine.frame_pages.size_bytes + engine.text_pages.size_bytes
    assert 30e9 < limit_bytes < 36e9
    assert weights + limit_bytes < 0.95 * 80e9  # the rest is for what a step writes
