"""A step: memory that stays, and where it reads."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from model.engine.engine import Engine
from model.engine.options import DialogOptions
from model.network.streamchat import StreamChat
from model.runtime.batch_layout import PageSelection
from model.runtime.kv_cache import TextKVCache
from model.runtime.packed_model import COLUMN_MAJOR_ROWS
from tests.model.engine.watched_cameras import CLOSE, PROMPT, features, watch, with_cameras
from tests.model.scenes import make_model


@pytest.fixture(scope="module")
def small() -> StreamChat:
    return make_model("gqa_tied")


def allocated(engine: Engine) -> dict[str, int]:
    """Bytes of new tensors by operation, in one run of the engine's step."""
    step: Any = engine._runner.step  # pyright: ignore[reportPrivateUsage]
    with (
        profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as seen,
        torch.inference_mode(),
    ):
        step.run()
    return {
        event.key: event.self_cpu_memory_usage for event in seen.key_averages() if event.self_cpu_memory_usage
    }


@pytest.mark.parametrize("num_frames", [2, 7])
def test_nothing_is_allocated_in_steady_state(model: StreamChat, num_frames: int):
    engine = with_cameras(model, "a", "b", num_frames=num_frames, page_tokens=8)
    for number in range(5):
        engine.open_dialog(f"{number}", "ab"[number % 2], PROMPT * (1 + number), DialogOptions())
    names = [f"{number}" for number in range(5)]
    for _ in range(3):
        engine.step(names)
    assert allocated(engine) == {}


def test_the_same_dialogs_go_on_in_the_same_memory(small: StreamChat):
    engine = with_cameras(small, "a")
    engine.open_dialog("d", "a", PROMPT, DialogOptions())
    engine.step(["d"])
    step = engine._runner.step  # pyright: ignore[reportPrivateUsage]
    for number in range(7, 11):
        watch(engine, "a", number, number)
        engine.step(["d"])
        assert engine._runner.step is step  # pyright: ignore[reportPrivateUsage]
    engine.open_dialog("e", "a", PROMPT, DialogOptions())
    engine.step(["d", "e"])
    assert engine._runner.step is not step  # pyright: ignore[reportPrivateUsage]


def test_a_step_that_is_replaced_is_freed_at_once(small: StreamChat):
    """Without the cyclic garbage collector: a step of many dialogs owns much memory."""
    engine = with_cameras(small, "a")
    engine.open_dialog("d", "a", PROMPT, DialogOptions())
    engine.step(["d"])
    step = weakref.ref(engine._runner.step)  # pyright: ignore[reportPrivateUsage, reportArgumentType]
    engine.open_dialog("e", "a", PROMPT, DialogOptions())
    gc.disable()
    try:
        engine.step(["d", "e"])
        assert step() is None
    finally:
        gc.enable()


def test_many_get_what_one_alone_gets(model: StreamChat):
    """From COLUMN_MAJOR_ROWS rows on, states lie by columns."""
    engine = with_cameras(model, "a", "b", page_tokens=8)
    names = [f"{number}" for number in range(COLUMN_MAJOR_ROWS + 3)]
    for number, name in enumerate(names):
        engine.open_dialog(name, "ab"[number % 2], PROMPT[number % 3 :] * 5, DialogOptions())
    for name in (names[0], names[-1]):
        torch.testing.assert_close(engine.logits(names)[int(name)], engine.logits([name])[0], **CLOSE)


def test_who_lies_far_apart_is_read_as_who_lies_together(model: StreamChat):
    """Pages and rings with many others between them are gathered."""
    cameras = [f"{number}" for number in range(8)]
    apart = with_cameras(model, *cameras, page_tokens=4)
    for name in cameras:
        apart.open_dialog(name, name, PROMPT * 3, DialogOptions())
    together = with_cameras(model, "0", "7", page_tokens=4)
    for name in ("0", "7"):
        together.open_dialog(name, name, PROMPT * 3, DialogOptions())
    for number in range(7, 12):
        assert apart.step(["0", "7"]) == together.step(["0", "7"])
        torch.testing.assert_close(apart.logits(["7", "0"]), together.logits(["7", "0"]), **CLOSE)
        for engine in (apart, together):
            watch(engine, "7", number, number)


def test_frames_that_are_very_old_are_seen_as_in_training(small: StreamChat):
    """Beyond the table of rotations."""
    engine = with_cameras(small, "a", num_frames=5)
    engine.open_dialog("d", "a", PROMPT, DialogOptions(), prefill_now=False)
    dialog = engine.dialogs["d"]
    dialog.camera_frame_index -= 5000
    base, num = sum(b"a"), len(PROMPT)
    with torch.no_grad():
        wanted = small(
            torch.tensor([PROMPT]),
            dialog.last_temporal_index + torch.arange(1 - num, 1)[None],
            torch.stack([features(small, base + number) for number in range(5)]),
            torch.arange(5)[None],
            torch.from_numpy(dialog.camera_frame_index)[None],
            torch.ones(1, num, 5, dtype=torch.bool),
        )[0, -1]
    torch.testing.assert_close(engine.logits(["d"])[0], wanted, **CLOSE)


def test_selected_pages_are_read_in_place_or_gathered(small: StreamChat):
    cache = TextKVCache(small.config, 9, 4, torch.float32, torch.device("cpu"))
    for keys, values in cache.layers:
        keys.copy_(torch.arange(9.0)[:, None, None, None].expand_as(keys))
        values.copy_(-keys)
    dense, sparse = (PageSelection(cache.layers, pages, cache.device) for pages in ([2, 4, 5], [1, 8]))
    assert (dense.num_pages, dense.number) == (4, {2: 0, 4: 2, 5: 3})
    assert dense.views()[1][0].data_ptr() == cache.layers[1][0][2].data_ptr()
    assert (sparse.num_pages, sparse.number) == (2, {1: 0, 8: 1})
    cache.layers[3][1][8] = 100.0
    sparse.gather(3)
    keys, values = sparse.views()[3]
    assert (keys[:, 0, 0, 0].tolist(), values[:, 0, 0, 0].tolist()) == ([1.0, 8.0], [-1.0, 100.0])
