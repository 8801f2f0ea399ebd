"""The engine: step parity with the training forward, sharing, eviction, resuming, turns, limits, errors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from model.config import preset
from model.engine.admission import EngineFull
from model.engine.dialog import GeneratedToken, PriorToken
from model.engine.engine import Engine
from model.engine.options import DialogOptions
from model.engine.retention import Retention, Tier
from model.network.streamchat import StreamChat
from tests.model.scenes import make_model, make_scene, play

CLOSE: dict[str, Any] = {"atol": 3e-5, "rtol": 1e-4}
PROMPT = [5, 9, 3, 60]


@pytest.fixture(scope="module")
def small() -> StreamChat:
    return make_model("gqa_tied")


def features(model: StreamChat, seed: int) -> Tensor:
    vision = model.config.vision
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(vision.num_visual_tokens, vision.hidden_size, generator=generator)


def watch(engine: Engine, camera: str, first: int, last: int) -> None:
    """Frames number `first` to `last` of a camera arrive, five a second."""
    base = sum(camera.encode())
    for number in range(first, last + 1):
        engine.add_frame(camera, f"{number}", number / 5, features(engine.model, base + number))


def with_cameras(model: StreamChat, *cameras: str, num_frames: int = 7, **settings: Any) -> Engine:
    engine = Engine(model, **settings)
    for camera in cameras:
        engine.add_camera(camera)
        watch(engine, camera, 0, num_frames - 1)
    return engine


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


@pytest.mark.parametrize("context", ["live", "frozen"])
@pytest.mark.parametrize("num_spoken", [1, 5])
def test_an_answer_goes_on_in_another_engine(model: StreamChat, num_spoken: int, context: Any):
    """A replica dies: with what was spoken and when, another one says the rest of the same sampled answer.

    The FIFO is large enough to hold all that the first one saw; the second one gets it from there.
    """
    wide = StreamChat(replace(model.config, fifo_frames=16))
    wide.load_state_dict(model.state_dict())
    options = DialogOptions(visual_context=context, temperature=1.0, seed=3, max_tokens=9)
    asked_s, pace_s = 0.45, 0.3

    def go_on(engine: Engine, first_step: int) -> list[GeneratedToken]:
        made: list[GeneratedToken] = []
        for step in range(first_step, 9):
            watch(engine, "a", *frames_between(asked_s + step * pace_s, asked_s + (step + 1) * pace_s))
            made += engine.step(["d"])
        return made

    def frames_between(after_s: float, until_s: float) -> tuple[int, int]:
        return int(after_s * 5) + 1, int(until_s * 5)

    first = with_cameras(wide, "a", num_frames=3)
    first.open_dialog("d", "a", PROMPT, options)
    said = go_on(first, 0)
    second = with_cameras(wide, "a", num_frames=int((asked_s + num_spoken * pace_s) * 5) + 1)
    times = [asked_s + (step + 1) * pace_s for step in range(num_spoken)]
    spoken = [PriorToken(token.token_id, made_s) for token, made_s in zip(said, times, strict=False)]
    second.open_dialog("d", "a", PROMPT, options, prior_tokens=spoken, asked_s=asked_s)
    assert go_on(second, num_spoken) == said[num_spoken:]
    a, b = first.dialogs["d"], second.dialogs["d"]
    assert (b.camera_frame_index.tolist(), b.clock, b.num_generated) == (
        a.camera_frame_index.tolist(),
        a.clock,
        9,
    )


def test_an_answer_ends_with_a_stop_token_or_at_its_length(small: StreamChat):
    engine = with_cameras(small, "a")
    engine.open_dialog("d", "a", PROMPT, DialogOptions(max_tokens=3))
    made = [engine.step(["d"])[0] for _ in range(3)]
    assert [token.finish_reason for token in made] == [None, None, "length"]
    with pytest.raises(ValueError, match="has finished"):
        engine.step(["d"])
    engine.open_dialog("e", "a", PROMPT, DialogOptions(stop_ids=frozenset({made[0].token_id})))
    assert engine.step(["e"])[0].finish_reason == "stop"
    assert [token.temporal_index - made[0].temporal_index for token in made] == [0, 1, 2]


def test_an_answer_ends_where_the_text_cache_is_full(small: StreamChat):
    engine = with_cameras(small, "a")
    limit = small.config.max_position_embeddings
    engine.open_dialog("d", "a", [1] * (limit - 3), DialogOptions(max_tokens=100))
    finished = [engine.step(["d"])[0].finish_reason for _ in range(3)]
    assert finished == [None, None, "length"]


def test_sampling_follows_seed_temperature_and_top_p(small: StreamChat):
    def answer(**options: Any) -> list[int]:
        engine = with_cameras(small, "a")
        engine.open_dialog("d", "a", PROMPT, DialogOptions(**options))
        return [engine.step(["d"])[0].token_id for _ in range(12)]

    greedy = answer()
    assert answer(temperature=3.0, seed=1) == answer(temperature=3.0, seed=1)
    assert answer(temperature=3.0, seed=1) != answer(temperature=3.0, seed=2)
    assert answer(temperature=1e-6, seed=1) == greedy
    assert answer(temperature=3.0, top_p=1e-9, seed=1) == greedy
    assert answer(temperature=3.0) != answer(temperature=3.0)


def test_a_camera_without_frames_gives_words_without_a_frame(small: StreamChat):
    engine = with_cameras(small, "a", num_frames=0)
    for context in ("live", "frozen"):
        engine.open_dialog(context, "a", PROMPT, DialogOptions(visual_context=context))
    for token in engine.step(["live", "frozen"]):
        assert (token.frame_id, token.captured_s) == (None, None)
    assert engine.cameras == {"a": None}


def test_many_frames_at_once_are_as_one_by_one(small: StreamChat):
    engine = with_cameras(small, "a", num_frames=9)
    engine.add_camera("b")
    base = sum(b"a")
    engine.add_frames("b", [(str(n), n / 5, features(small, base + n)) for n in range(9)])
    for name in ("a", "b"):
        engine.open_dialog(name, name, PROMPT, DialogOptions())
    logits = engine.logits(["a", "b"])
    torch.testing.assert_close(logits[0], logits[1], **CLOSE)


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
    assert engine.cache_usage.text_bytes == 0
    engine.open_dialog("d", "a", PROMPT, DialogOptions())


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


def text_forward(model: StreamChat, token_ids: list[int], index: list[int], readable: list[bool]) -> Tensor:
    """The training forward of text alone; some tokens are read by nobody but themselves."""
    vision, num = model.config.vision, len(token_ids)
    mask = torch.ones(num, num).tril().bool() & (torch.tensor(readable)[None] | torch.eye(num).bool())
    with torch.no_grad():
        return model(
            torch.tensor([token_ids]),
            torch.tensor([index]),
            torch.zeros(1, 1, vision.num_visual_tokens, vision.hidden_size),
            torch.tensor([0]),
            torch.tensor([[0]]),
            torch.zeros(1, num, 1, dtype=torch.bool),
            mask[None],
        )[0]


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
        held.append(engine.cache_usage.dialog_bytes(engine.dialogs["d"]))
        engine.start_turn("d", PROMPT * 5)
    dialog = engine.dialogs["d"]
    assert dialog.num_computed_tokens > 1000
    assert len(set(held[5:])) <= 3
    assert max(held) <= engine.cache_usage.limit_bytes - engine.cache_usage.camera_bytes * 32
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


def test_a_dialog_at_rest_goes_on_as_if_it_had_never_stopped(model: StreamChat):
    """Many turns: what was read is not read again, and the clock has gone on."""
    engine, other = with_cameras(model, "a"), with_cameras(model, "a")
    for each in (engine, other):
        each.open_dialog("d", "a", PROMPT * 3, DialogOptions(max_tokens=4, seed=1))
        while each.step(["d"])[0].finish_reason is None:
            pass
    engine.suspend_dialog("d")
    for each in (engine, other):
        watch(each, "a", 7, 12)
    length = engine.dialogs["d"].num_computed_tokens
    for each in (engine, other):
        each.start_turn("d", PROMPT, DialogOptions(max_tokens=9))
    torch.testing.assert_close(engine.logits(["d"]), other.logits(["d"]), **CLOSE)
    assert engine.dialogs["d"].num_computed_tokens == length + len(PROMPT)


def test_dialogs_at_rest_make_way_for_new_ones(small: StreamChat):
    page = 8 * 4 * 2 * 2 * 16 * 4  # tokens, layers, keys and values, groups, head size, bytes
    rings = 2 * 2 * 2 * 5 * 9 * 16 * 4
    engine = with_cameras(small, "a", page_tokens=8, max_cameras=1, cache_bytes=rings + 16 * page)
    for name in ("old", "young"):
        engine.open_dialog(name, "a", PROMPT, DialogOptions(max_tokens=20))
        engine.step([name])
        engine.suspend_dialog(name)
    assert engine.cache_usage.text_bytes == 2 * page
    assert [engine.cache_usage.dialog_bytes(dialog) for dialog in engine.dialogs.values()] == [page, page]
    engine.open_dialog("long", "a", PROMPT * 24, DialogOptions(max_tokens=20))  # 15 pages
    assert list(engine.dialogs) == ["young", "long"]
    with pytest.raises(EngineFull, match="no memory"):
        engine.open_dialog("more", "a", PROMPT, DialogOptions(max_tokens=20))
    with pytest.raises(EngineFull, match="no memory"):
        engine.start_turn("young", PROMPT, DialogOptions(max_tokens=200))
    assert list(engine.dialogs) == ["young", "long"]
    assert len(engine.step(["long"])) == 1


def test_cameras_that_nobody_watches_make_way(small: StreamChat):
    engine = with_cameras(small, "a", "b", "c", max_cameras=3)
    assert engine.cache_usage.frame_bytes == 3 * engine.cache_usage.camera_bytes
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
    assert engine.cache_usage.frame_bytes == 2 * engine.cache_usage.camera_bytes
    watch(engine, "a", 7, 7)
    engine.open_dialog("f", "a", PROMPT, DialogOptions(visual_context="frozen"))
    assert engine.cache_usage.frame_bytes == 3 * engine.cache_usage.camera_bytes
    for name in ("d", "e", "f"):
        engine.close_dialog(name)
    watch(engine, "a", 8, 8)
    assert engine.cache_usage.frame_bytes == engine.cache_usage.camera_bytes
    engine.drop_camera("a")
    assert (engine.cache_usage.frame_bytes, engine.cache_usage.text_bytes) == (0, 0)


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
    assert engine.cache_usage.camera_bytes == 12 * 2 * 8 * 32 * 256 * 128 * 2
    assert 34e9 < weights < 37e9
    assert 30e9 < engine.cache_usage.limit_bytes < 36e9
    assert weights + engine.cache_usage.limit_bytes < 0.95 * 80e9  # the rest is for what a step writes
