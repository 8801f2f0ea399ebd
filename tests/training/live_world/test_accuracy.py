"""The accuracy of a model on held-out clips."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import PreTrainedTokenizerFast

from model.network.streamchat import StreamChat
from tests.training.sample_worlds import STORY, question, speak
from training.live_world.accuracy import (
    CONTEXTS,
    FRAME_AGE_S,
    STEP_S,
    AccuracyEvaluator,
    EvalDialog,
    accuracy_table,
    main,
    next_step_s,
    score_dialogs,
    summarise,
)
from training.live_world.answers import reference_answer
from training.live_world.clips import Clip
from training.live_world.questions import KINDS

STORY_CLIP = Clip(path=Path(), world=STORY)


def test_a_random_model_is_measured_and_the_files_are_written(
    random_folder: Path,
    held_out: list[Clip],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    clips = str(held_out[0].path.parent)
    monkeypatch.setattr(
        sys, "argv", ["eval", "--model", str(random_folder), "--clips", clips, "--out", str(tmp_path)]
    )
    main()
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert last["clips"] == 2
    assert not last["live"] > 0.3  # NaN when it said nothing that can be judged
    results = json.loads((tmp_path / "results.json").read_text())
    assert set(results["table"]) == {*KINDS, "all"}
    assert (tmp_path / "table.md").read_text().startswith("| question | before, live |")
    with Image.open(tmp_path / "accuracy.png") as picture:
        assert picture.width > 600


def test_clips_that_are_not_held_out_and_none_are_refused(
    random_folder: Path,
    clips: list[Clip],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for model, folder, said in (
        (random_folder, clips[0].path.parent, "wanted held-out seeds, from 1000000 on"),
        (random_folder, tmp_path, "holds no live-world clips"),
        (tmp_path, clips[0].path.parent, "is no StreamChat folder"),
    ):
        command = ["--model", str(model), "--clips", str(folder), "--out", str(tmp_path / "out")]
        monkeypatch.setattr(sys, "argv", ["eval", *command])
        with pytest.raises(SystemExit):
            main()
        assert said in capsys.readouterr().err


def test_live_and_frozen_see_the_same_until_a_frame_comes(
    random_model: StreamChat, tokenizer: PreTrainedTokenizerFast, held_out: list[Clip]
) -> None:
    rows = json.loads((held_out[0].path.parent / "questions.json").read_text())[held_out[0].path.name][:2]
    asked = AccuracyEvaluator(random_model, tokenizer).ask(held_out[0], rows)
    assert [(a.name, a.context) for a in asked] == [(f"{i}-{c}", c) for i in (0, 1) for c in CONTEXTS]
    for live, frozen in zip(asked[::2], asked[1::2], strict=True):
        assert live.tokens[0] == frozen.tokens[0]
        times = [seen_s for _, seen_s in live.tokens]
        assert times[0] == live.asked_seen_s
        np.testing.assert_allclose(np.diff(times), STEP_S)  # a new frame before every token


def dialog_with(context: str, delay_s: float) -> EvalDialog:
    """The answer of someone who sees everything with a delay."""
    said = reference_answer(question("where"), STORY, 3.0, 4.0, 24, lambda time_s: time_s - delay_s)
    tokens = [(" " + word.text, word.seen_s) for word in speak(said)]
    return EvalDialog("0", context, said.question, 3.0, 3.0, tokens)


def test_perfect_answers_get_full_marks_and_late_ones_do_not() -> None:
    scores = score_dialogs(STORY_CLIP, [dialog_with("live", 0.0), dialog_with("frozen", 2.0)])
    rows = summarise(scores)
    assert rows["where"]["live_after"]["right"] == rows["all"]["live_after"]["right"] == 1.0
    assert rows["where"]["frozen_after"]["right"] < 0.7
    assert rows["where"]["live_before"]["right"] == rows["where"]["frozen_before"]["right"] == 1.0
    assert rows["where"]["live_after"]["words"] > 3


def test_what_a_forward_tells_is_judged_as_if_it_were_spoken(
    random_model: StreamChat, tokenizer: PreTrainedTokenizerFast
) -> None:
    """A wrong word of state is one mistake; with a wrong first word the whole sentence tells something else."""
    evaluator = AccuracyEvaluator(random_model, tokenizer)

    def told(said: str, wanted: str) -> tuple[int, int]:
        first, second = (
            torch.tensor(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in (said, wanted)
        )
        return evaluator.count_right(first, second)

    wanted = "A red dog appears at top. All is quiet."
    assert told(wanted, wanted) == (5, 5)
    assert told("A blue dog appears at top. All is quiet.", wanted) == (4, 5)
    assert told("The red dog appears at top. All is quiet.", wanted) == (1, 5)
    assert told("A red dog appears to top. All is quiet.", wanted) == (4, 5)


def test_the_table_has_a_row_for_each_kind() -> None:
    lines = accuracy_table(summarise(score_dialogs(STORY_CLIP, [dialog_with("live", 0.0)]))).splitlines()
    assert [line.split("|")[1].strip() for line in lines[2:]] == [*KINDS, "all"]
    assert lines[2 + KINDS.index("where")].startswith("| where | 100.0 % | – | 100.0 % |")


@pytest.mark.parametrize(("time_s", "tick_s"), [(1.0, 1.05), (1.05, 1.05), (1.06, 1.25), (0.0, 0.05)])
def test_questions_are_heard_at_ticks(time_s: float, tick_s: float) -> None:
    assert next_step_s(time_s) == pytest.approx(tick_s)
    assert FRAME_AGE_S < STEP_S
