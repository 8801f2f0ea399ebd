"""Rings and snapshots: eviction, frozen dialogs, retention."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from model.engine.admission import EngineFull
from model.engine.engine import Engine
from model.engine.options import DialogOptions
from model.engine.retention import Retention, Tier
from model.network.streamchat import StreamChat
from tests.model.engine.watched_cameras import CLOSE, PROMPT, features, watch, with_cameras
from tests.model.scenes import make_scene, play


def test_the_frame_that_falls_out_leaves_no_trace(model: StreamChat):
    """Eviction: after F more frames, a ring that saw other frames before is the same ring, bit for bit."""
    capacity = model.config.fifo_frames
    logits: list[Tensor] = []
    for seed in (100, 200):
        engine = Engine(model)
        engine.add_camera("a")
        for number in range(3):
            engine.add_frame("a", f"{number}", number / 5, 100 * features(model, seed + number))
        watch(engine, "a", 3, 2 + capacity)
        engine.open_dialog("d", "a", PROMPT, DialogOptions())
        logits.append(engine.logits(["d"]))
    assert torch.equal(logits[0], logits[1])
    engine.add_frame("a", "new", 9.0, features(model, 1))
    assert not torch.equal(engine.logits(["d"]), logits[0])


def test_a_step_looks_again_unless_the_dialog_is_frozen(small: StreamChat):
    engine = with_cameras(small, "a")
    for context in ("live", "frozen"):
        engine.open_dialog(context, "a", PROMPT, DialogOptions(visual_context=context))
    before = engine.logits(["live", "frozen"])
    torch.testing.assert_close(before[0], before[1], **CLOSE)
    watch(engine, "a", 7, 8)
    after = engine.logits(["live", "frozen"])
    assert (after[0] - before[0]).abs().max() > 1e-3
    assert torch.equal(after[1], before[1])
    live, frozen = engine.step(["live", "frozen"])
    assert (live.frame_id, live.captured_s) == ("8", 1.6)
    assert (frozen.frame_id, frozen.captured_s) == ("6", 1.2)


def test_a_camera_without_frames_gives_words_without_a_frame(small: StreamChat):
    engine = with_cameras(small, "a", num_frames=0)
    for context in ("live", "frozen"):
        engine.open_dialog(context, "a", PROMPT, DialogOptions(visual_context=context))
    for token in engine.step(["live", "frozen"]):
        assert (token.frame_id, token.captured_s) == (None, None)
    assert engine.cameras == {"a": None}


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 3e38])
def test_a_frame_that_is_not_finite_is_skipped(small: StreamChat, value: float):
    engine, other = with_cameras(small, "a"), with_cameras(small, "a")
    engine.add_frame("a", "broken", 1.3, torch.full_like(features(small, 0), value))
    assert (engine.num_skipped_frames, other.num_skipped_frames) == (1, 0)
    for each in (engine, other):
        watch(each, "a", 7, 7)
        each.open_dialog("d", "a", PROMPT, DialogOptions())
    assert engine.step(["d"]) == other.step(["d"])


def test_cameras_that_nobody_watches_make_way(small: StreamChat):
    engine = with_cameras(small, "a", "b", "c", max_cameras=3)
    assert engine.frame_pages.allocated_bytes == 3 * engine.frame_pages.page_bytes
    engine.open_dialog("d", "a", PROMPT, DialogOptions())
    engine.open_dialog("e", "b", PROMPT, DialogOptions())
    engine.close_dialog("e")
    assert engine.add_camera("x") == "c"  # never asked about
    assert engine.add_camera("y") == "b"
    engine.open_dialog("f", "x", PROMPT, DialogOptions())
    engine.open_dialog("g", "y", PROMPT, DialogOptions())
    with pytest.raises(EngineFull, match="3 cameras are watched"):
        engine.add_camera("z")
    assert list(engine.cameras) == ["a", "x", "y"]
    with pytest.raises(EngineFull, match="frozen dialog"):
        engine.open_dialog("h", "a", PROMPT, DialogOptions(visual_context="frozen"))
    assert "h" not in engine.dialogs


def test_frozen_dialogs_of_one_moment_share_one_copy(small: StreamChat):
    engine = with_cameras(small, "a", max_cameras=4)
    for name in ("d", "e"):
        engine.open_dialog(name, "a", PROMPT, DialogOptions(visual_context="frozen"))
    assert engine.frame_pages.allocated_bytes == 2 * engine.frame_pages.page_bytes
    watch(engine, "a", 7, 7)
    engine.open_dialog("f", "a", PROMPT, DialogOptions(visual_context="frozen"))
    assert engine.frame_pages.allocated_bytes == 3 * engine.frame_pages.page_bytes
    for name in ("d", "e", "f"):
        engine.close_dialog(name)
    watch(engine, "a", 8, 8)
    assert engine.frame_pages.allocated_bytes == engine.frame_pages.page_bytes
    engine.drop_camera("a")
    assert (engine.frame_pages.allocated_bytes, engine.text_pages.allocated_bytes) == (0, 0)


def test_several_rates_are_seen_as_in_training(small: StreamChat):
    """The multi-rate FIFO: the ring's frames, those that training would show."""
    retention = Retention(5, [Tier(2, 1.0)])
    scene = make_scene(small, seed=4)
    inputs = scene.inputs(small)
    rows = torch.from_numpy(retention.visible(scene.frame_times))
    counts = [sum(time <= moment for time in scene.frame_times) for moment in [*scene.text_times[1:], 1e9]]
    inputs["visible"] = rows[counts][None]
    with torch.no_grad():
        wanted = small(**inputs)[0]
    for position, logits in play(Engine(small, retention=retention), scene, DialogOptions()):
        torch.testing.assert_close(logits, wanted[position], **CLOSE)
