"""The engine: step parity with the training forward, sharing, sampling, errors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from model.engine.dialog import DialogsFailed, GeneratedToken, PriorToken
from model.engine.engine import Engine
from model.engine.options import DialogOptions
from model.engine.retention import Retention
from model.network.streamchat import StreamChat
from tests.model.engine.watched_cameras import CLOSE, PROMPT, features, watch, with_cameras
from tests.model.scenes import make_scene, play


@pytest.mark.parametrize("prefill_tokens", [512, 3, 1])
@pytest.mark.parametrize("num_turns", [1, 3])
def test_steps_give_the_training_forwards_logits(model: StreamChat, num_turns: int, prefill_tokens: int):
    """Step parity, through the ring, which holds 5 frames of 24; text and frames come in the order of their times."""
    scene = make_scene(model, seed=num_turns, num_turns=num_turns)
    with torch.no_grad():
        wanted = model(**scene.inputs(model))[0]
    engine = Engine(model, max_prefill_tokens=prefill_tokens)
    positions: list[int] = []
    for position, logits in play(engine, scene, DialogOptions(max_tokens=10)):
        torch.testing.assert_close(logits, wanted[position], **CLOSE)
        positions.append(position)
    assert len(positions) == 10 * num_turns


def test_fewer_frames_are_those_of_a_smaller_fifo(small: StreamChat):
    scene = make_scene(small, seed=4)
    config = small.config
    other = StreamChat(replace(config, fifo_frames=2))
    other.load_state_dict(small.state_dict())
    with torch.no_grad():
        wanted = other(**scene.inputs(other))[0]
    for position, logits in play(Engine(small), scene, DialogOptions(num_frames=2)):
        torch.testing.assert_close(logits, wanted[position], **CLOSE)


def answers(
    engine: Engine, dialogs: dict[str, Callable[[int], int]], num_steps: int
) -> dict[str, list[GeneratedToken]]:
    """Steps all dialogs together, each every so often, while frames keep coming to every camera."""
    made: dict[str, list[GeneratedToken]] = {dialog: [] for dialog in dialogs}
    for step in range(num_steps):
        due = [dialog for dialog, when in dialogs.items() if when(step) == 0]
        for token in engine.step(due):
            made[token.dialog_id].append(token)
        for camera in engine.cameras:
            watch(engine, camera, 7 + step, 7 + step)
    return made


def test_dialogs_give_the_same_answers_together_as_alone(model: StreamChat):
    """Sharing: different prompts, lengths, paces, views and sampling, on two cameras, in one batch."""
    variants: dict[str, tuple[str, list[int], DialogOptions]] = {
        "greedy": ("a", PROMPT, DialogOptions()),
        "twin": ("a", PROMPT, DialogOptions()),
        "long": ("a", PROMPT * 9, DialogOptions()),
        "frozen": ("a", PROMPT[:2], DialogOptions(visual_context="frozen")),
        "few": ("a", PROMPT, DialogOptions(num_frames=2)),
        "other": ("b", PROMPT, DialogOptions()),
        "drawn": ("b", PROMPT[:1], DialogOptions(temperature=1.5, top_p=0.9, seed=7)),
    }

    def pace(dialog: str) -> Callable[[int], int]:
        return lambda step: step % 2 if dialog in ("long", "other") else 0

    def run(*names: str) -> dict[str, list[GeneratedToken]]:
        engine = with_cameras(model, "a", "b")
        for name in names:
            camera, prompt, options = variants[name]
            engine.open_dialog(name, camera, prompt, options)
        return answers(engine, {name: pace(name) for name in names}, 8)

    together = run(*variants)
    assert together["greedy"] != together["other"]
    for name in variants:
        assert run(name)[name] == together[name]


def test_a_dialog_with_nan_fails_alone_and_leaves_none_behind(model: StreamChat):
    def opened(*names: str) -> Engine:
        engine = with_cameras(model, "a", page_tokens=8, max_dialogs=3)
        for name in names:
            engine.open_dialog(name, "a", PROMPT * 3, DialogOptions(temperature=1.0, seed=1))
        return engine

    engine, wanted = opened("poisoned", "d", "e"), opened("d", "e", "f")
    pages = engine.dialogs["poisoned"].pages
    with torch.inference_mode():
        for keys, values in engine._runner.text_cache.layers:  # pyright: ignore[reportPrivateUsage]
            keys[pages] = values[pages] = float("nan")
    with pytest.raises(DialogsFailed) as raised:
        engine.step(["poisoned", "d", "e"])
    assert raised.value.dialog_ids == ["poisoned"]
    assert engine.num_failed_rows == 1
    engine.close_dialog("poisoned")
    engine.open_dialog("f", "a", PROMPT * 3, DialogOptions(temperature=1.0, seed=1))  # on the same pages
    assert engine.dialogs["f"].pages == pages
    for _ in range(9):
        assert engine.step(["d", "e", "f"]) == wanted.step(["d", "e", "f"])


def test_a_ring_of_another_size_is_refused(small: StreamChat):
    with pytest.raises(ValueError, match="retention: got a capacity of 3, wanted 5"):
        Engine(small, retention=Retention(3))


def test_looking_at_logits_changes_nothing(small: StreamChat):
    engine = with_cameras(small, "a")
    engine.open_dialog("d", "a", PROMPT, DialogOptions())
    assert torch.equal(engine.logits(["d"]), engine.logits(["d"]))
    first = engine.logits(["d"]).argmax().item()
    assert engine.step(["d"])[0].token_id == first


def test_logits_come_in_the_order_asked_for(small: StreamChat):
    engine = with_cameras(small, "a", "b")
    for name, camera in (("x", "a"), ("y", "b"), ("z", "a")):
        engine.open_dialog(name, camera, PROMPT if name != "z" else PROMPT[:2], DialogOptions())
    forward, backward = engine.logits(["x", "y", "z"]), engine.logits(["z", "y", "x"])
    torch.testing.assert_close(forward, backward.flip(0), **CLOSE)
    assert engine.logits([]).shape == (0, small.config.vocab_size)


def test_sampling_follows_seed_temperature_and_top_p(small: StreamChat):
    def answer(**options: Any) -> list[int]:
        engine = with_cameras(small, "a")
        engine.open_dialog("d", "a", PROMPT, DialogOptions(**options))
        return [engine.step(["d"])[0].token_id for _ in range(12)]

    greedy = answer()
    assert answer(temperature=3.0, seed=1) == answer(temperature=3.0, seed=1)
    assert answer(temperature=3.0, seed=1) != answer(temperature=3.0, seed=2)
    assert answer(temperature=3.0, top_p=0.0, seed=1) == greedy
    assert answer(temperature=3.0) != answer(temperature=3.0)


@pytest.mark.parametrize(
    "options", [{"visual_context": "slow"}, {"num_frames": 0}, {"max_tokens": 0}, {"temperature": -1.0}]
)
def test_wrong_options_are_refused(options: dict[str, Any]):
    with pytest.raises(ValueError, match=f"{next(iter(options))}: got .*, wanted"):
        DialogOptions(**options)


def test_a_callers_mistake_changes_nothing(small: StreamChat):
    engine = with_cameras(small, "a")
    engine.open_dialog("d", "a", PROMPT, DialogOptions())
    wanted = engine.logits(["d"])
    wrong = features(small, 0)[1:]
    mistakes: list[tuple[str, Callable[[], object]]] = [
        ("not added", lambda: engine.open_dialog("e", "nowhere", PROMPT, DialogOptions())),
        ("open already", lambda: engine.open_dialog("d", "a", PROMPT, DialogOptions())),
        ("got none", lambda: engine.open_dialog("e", "a", [], DialogOptions())),
        ("wanted 0 to", lambda: engine.open_dialog("e", "a", [1, 97], DialogOptions())),
        ("wanted 0 to", lambda: engine.open_dialog("e", "a", [-1], DialogOptions())),
        ("wanted at most 299", lambda: engine.open_dialog("e", "a", [1] * 300, DialogOptions())),
        (
            "fewer than max_tokens",
            lambda: engine.open_dialog(
                "e", "a", [1], DialogOptions(max_tokens=1), prior_tokens=[PriorToken(1, 0.0)]
            ),
        ),
        ("logit_bias", lambda: engine.open_dialog("e", "a", PROMPT, DialogOptions(logit_bias=((97, 1.0),)))),
        ("still speaking", lambda: engine.start_turn("d", PROMPT)),
        ("not open", lambda: engine.start_turn("e", PROMPT)),
        ("not open", lambda: engine.close_dialog("e")),
        ("not open", lambda: engine.step(["d", "e"])),
        ("twice", lambda: engine.step(["d", "d"])),
        ("shape", lambda: engine.add_frame("a", "x", 9.0, wrong)),
        ("not added", lambda: engine.add_frame("b", "x", 9.0, wrong)),
        ("there already", lambda: engine.add_camera("a")),
        ("still has dialogs: d", lambda: engine.drop_camera("a")),
        ("not added", lambda: engine.drop_camera("b")),
    ]
    for words, mistake in mistakes:
        with pytest.raises(ValueError, match=words):
            mistake()
    assert torch.equal(engine.logits(["d"]), wanted)
    assert list(engine.dialogs) == ["d"]


@pytest.mark.parametrize("page_tokens", [4, 7, 64])
def test_small_pages_change_nothing(model: StreamChat, page_tokens: int):
    scene = make_scene(model, seed=2, num_turns=2)
    with torch.no_grad():
        wanted = model(**scene.inputs(model))[0]
    engine = Engine(model, page_tokens=page_tokens)
    for other in range(3):  # others' pages lie between
        engine.add_camera(f"{other}")
        engine.open_dialog(f"{other}", f"{other}", PROMPT * (other + 1), DialogOptions())
    for position, logits in play(engine, scene, DialogOptions(max_tokens=10)):
        torch.testing.assert_close(logits, wanted[position], **CLOSE)
        engine.step(["0", "2"])
