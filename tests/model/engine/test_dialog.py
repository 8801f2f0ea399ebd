"""A dialog over time: resuming in another engine, suspended between turns, its end."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from model.engine.dialog import GeneratedToken, PriorToken
from model.engine.engine import Engine
from model.engine.options import DialogOptions
from model.network.streamchat import StreamChat
from tests.model.engine.watched_cameras import CLOSE, PROMPT, watch, with_cameras


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


@pytest.mark.parametrize("context", ["live", "frozen"])
@pytest.mark.parametrize("asked_s", [-5.0, 0.7])
def test_an_answer_goes_on_although_the_frames_of_its_question_are_gone(
    small: StreamChat, asked_s: float, context: Any
):
    """The FIFO has rolled past the question, or the camera's clock is ahead: the oldest frames take their place."""
    engine = with_cameras(small, "a", num_frames=9)  # frames 4 to 8, from 0.8 s on
    options = DialogOptions(visual_context=context)
    spoken = [PriorToken(7, asked_s + 0.1), PriorToken(8, 1.3)]
    engine.open_dialog("d", "a", PROMPT, options, prior_tokens=spoken, asked_s=asked_s)
    (token,) = engine.step(["d"])
    assert token.frame_id == ("4" if context == "frozen" else "8")


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


def test_the_oldest_turn_is_dropped_and_never_the_last(small: StreamChat):
    engine = with_cameras(small, "a", page_tokens=4)
    engine.open_dialog("d", "a", PROMPT * 3, DialogOptions(max_tokens=1), num_pinned_tokens=2)
    engine.step(["d"])
    engine.start_turn("d", PROMPT)
    dialog = engine.dialogs["d"]
    second = dialog.turns[1]
    freed = dialog.drop_oldest_turn(4)
    assert dialog.turns == [second]
    assert dialog.dropped_tokens == range(2, second.first_token)
    assert freed is not None
    assert dialog.pages.count(-1) == len(freed) == second.first_token // 4 - 1
    assert dialog.drop_oldest_turn(4) is None
    assert dialog.turns == [second]
