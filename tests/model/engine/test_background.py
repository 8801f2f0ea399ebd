"""Frame ingest and prefill in pieces give what they give at once."""

from __future__ import annotations

import torch

from model.engine.options import DialogOptions
from model.network.streamchat import StreamChat
from tests.model.engine.watched_cameras import CLOSE, PROMPT, features, watch, with_cameras


def test_many_frames_at_once_are_as_one_by_one(small: StreamChat):
    engine = with_cameras(small, "a", num_frames=9)
    engine.add_camera("b")
    base = sum(b"a")
    engine.add_frames("b", [(str(n), n / 5, features(small, base + n)) for n in range(9)])
    for name in ("a", "b"):
        engine.open_dialog(name, name, PROMPT, DialogOptions())
    logits = engine.logits(["a", "b"])
    torch.testing.assert_close(logits[0], logits[1], **CLOSE)


def test_frames_and_prompts_come_in_beside_the_steps(small: StreamChat):
    """In pieces between the steps of others, a dialog is told what it is told at once."""
    at_once, beside = with_cameras(small, "a"), with_cameras(small, "a")
    for engine in (at_once, beside):
        engine.open_dialog("first", "a", PROMPT, DialogOptions(max_tokens=200))
    watch(at_once, "a", 7, 8)
    base = sum(b"a")
    beside.enqueue_frames("a", [(str(n), n / 5, features(small, base + n)) for n in (7, 8)])
    num_steps = 0
    while beside.run_background(0.0):
        assert len(beside.step(["first"])) == 1
        num_steps += 1
    assert num_steps > 2
    assert beside.cameras == at_once.cameras
    long = [token % 97 for token in range(200)]
    at_once.open_dialog("second", "a", long, DialogOptions())
    beside.open_dialog("second", "a", long, DialogOptions(), prefill_now=False)
    assert not beside.is_prefilled("second")
    num_steps = 0
    while not beside.is_prefilled("second"):
        beside.run_background(0.0)
        beside.step(["first"])
        num_steps += 1
    assert num_steps > 2
    torch.testing.assert_close(beside.logits(["second"]), at_once.logits(["second"]), **CLOSE)


def test_several_prompts_are_read_in_one_forward_as_alone(model: StreamChat):
    prompts = {"x": PROMPT * 9, "y": PROMPT[:1], "z": PROMPT * 3}
    alone, together = (with_cameras(model, "a", "b", page_tokens=8) for _ in range(2))
    for name, prompt in prompts.items():
        camera = "b" if name == "z" else "a"
        alone.open_dialog(name, camera, prompt, DialogOptions())
        together.open_dialog(name, camera, prompt, DialogOptions(), prefill_now=False)
    together.run_background(10.0)
    assert all(together.is_prefilled(name) for name in prompts)
    torch.testing.assert_close(together.logits([*prompts]), alone.logits([*prompts]), **CLOSE)


def test_a_long_prompt_delays_no_short_one(small: StreamChat):
    engine = with_cameras(small, "a")
    engine.open_dialog("long", "a", PROMPT * 20, DialogOptions(), prefill_now=False)
    engine.run_background(0.0)
    engine.open_dialog("short", "a", PROMPT, DialogOptions(), prefill_now=False)
    while not engine.is_prefilled("short"):
        assert engine.run_background(0.0)
    assert not engine.is_prefilled("long")
    while engine.run_background(0.0):
        pass
    assert engine.is_prefilled("long")
