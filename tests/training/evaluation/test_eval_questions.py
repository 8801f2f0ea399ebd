"""Questions of a streaming evaluation, from any data set's rows and from the live world."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from training.data.bad_row import BadRow, BadRowCounter
from training.data.training_row import Caption, parse_captions
from training.evaluation.eval_questions import live_world_questions, read_questions
from training.live_world.clips import Clip


def row(**changes: Any) -> dict[str, Any]:
    turns = [
        {"start_s": 4.0, "end_s": 9.0, "instruction": "And now?", "answer": "He eats."},
        {"start_s": 1.0, "end_s": 3.0, "instruction": "What does he do?", "answer": "He cooks."},
    ]
    captions = [
        {"start_s": 3.5, "end_s": 9, "caption": "A man eats."},
        {"start_s": 0, "end_s": 3.5, "caption": "A man cooks."},
    ]
    return {
        "video": "a.mp4",
        "kind": "dense",
        "source": "vript",
        "turns": turns,
        "captions": captions,
    } | changes


def read(tmp_path: Path, *rows: Any, max_share: float = 1.0) -> tuple[Any, BadRowCounter]:
    (tmp_path / "a.mp4").write_bytes(b"a video, for all that is read here")
    path = tmp_path / "rows.jsonl"
    path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows))
    bad = BadRowCounter(max_share=max_share)
    return read_questions(path, bad), bad


def test_each_turn_of_a_row_is_a_question(tmp_path: Path) -> None:
    (first, second), _ = read(tmp_path, row(id="x"))
    assert (first.name, first.ask_s, first.instruction, first.answer) == (
        "x#0",
        1.0,
        "What does he do?",
        "He cooks.",
    )
    assert (second.name, second.ask_s) == ("x#1", 4.0)
    assert first.video == tmp_path / "a.mp4"
    assert first.captions == second.captions
    assert first.captions[0] == Caption(start_s=0.0, end_s=3.5, caption="A man cooks.")
    assert first.world is None


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ("{", "wrong type"),
        (row(kind="offline"), "not dense"),
        (row(video="b.mp4"), "no video"),
        (row(turns=[]), "no turns"),
        (row(turns=[{"start_s": 5, "end_s": 4, "instruction": "a", "answer": "b"}]), "reversed interval"),
        (row(captions=[{"start_s": 5, "end_s": 4, "caption": "a"}]), "reversed interval"),
        (row(captions=[{"start_s": 5, "end_s": "x", "caption": "a"}]), "wrong type"),
        (row(captions=7), "wrong type"),
        (row(id="good"), "duplicate id"),
    ],
)
def test_a_bad_row_is_counted_and_the_others_are_read(tmp_path: Path, wrong: Any, reason: str) -> None:
    questions, bad = read(tmp_path, row(id="good"), wrong)
    assert {q.name for q in questions} == {"good#0", "good#1"}
    assert bad.reasons == {reason: 1}


def test_too_many_bad_rows_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="1 of 2 rows are bad"):
        read(tmp_path, row(), "{", max_share=0.4)


def test_captions_must_be_captions() -> None:
    with pytest.raises(BadRow, match="caption"):
        parse_captions([{"start_s": 1.0, "end_s": 2.0}])


def test_the_live_worlds_questions(held_out: list[Clip]) -> None:
    questions = live_world_questions(held_out[0].path.parent)
    assert len({q.name for q in questions}) == len(questions) == 12
    assert {q.video for q in questions} == {clip.path for clip in held_out}
    for question in questions:
        assert question.world_question is not None
        assert question.world_question.instruction == question.instruction
        assert question.captions
    assert len(live_world_questions(held_out[0].path.parent, 1)) == 6


def test_training_clips_are_refused(clips: list[Clip]) -> None:
    with pytest.raises(ValueError, match="not held out"):
        live_world_questions(clips[0].path.parent)
