"""Which replies of a model are usable, and why the others are not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from training.data.bad_row import BadRow
from training.data.training_row import TrainingRow, Turn
from training.dense.dense_reply import Example, read_examples, read_reply
from training.dense.instruction_writer import WriterConfig


def caption(start_s: float, end_s: float, text: str) -> Turn:
    return Turn(start_s=start_s, end_s=end_s, instruction="Tell me what happens.", answer=text)


ROW = TrainingRow(
    video="a.mp4",
    time_range=(0.0, 20.0),
    turns=(
        caption(0.0, 6.0, "A man opens the fridge"),
        caption(6.03, 7.0, "He takes out a carton of eggs"),
        caption(14.0, 19.0, "He cracks an egg into a glass bowl"),
    ),
    kind="dense",
    source="ego4d",
)
EXAMPLE = Example(captions=((0.0, 1.0, "x"),), start_s=0.0, instruction="Say it!", answer="An egg, copied.")


def reply(start_s: Any = 14.0, instruction: Any = "What now?", answer: Any = "He cracks an egg.") -> str:
    return json.dumps({"start_s": start_s, "instruction": instruction, "answer": answer})


def test_a_good_reply_gets_the_captions_interval() -> None:
    assert read_reply(reply(), ROW) == Turn(
        start_s=14.0, end_s=19.0, instruction="What now?", answer="He cracks an egg."
    )


def test_words_around_the_object_do_no_harm() -> None:
    assert read_reply(f"Sure!\n```json\n{reply()}\n``` {{", ROW).start_s == 14.0


def test_a_rounded_moment_is_the_captions_own_and_a_short_caption_leaves_time_to_speak() -> None:
    turn = read_reply(reply(6.0, answer="He takes a carton of eggs out of it with care."), ROW)
    assert turn.start_s == 6.03
    assert turn.end_s == pytest.approx(6.03 + 10 / 4)


def test_nothing_is_said_after_the_clip() -> None:
    turn = read_reply(reply(18.9, answer="He cracks an egg and then one more egg into it."), ROW)
    assert (turn.start_s, turn.end_s) == (18.9, 20.0)


BAD: list[tuple[str, str]] = [
    ("", "no JSON"),
    ("The man cooks.", "no JSON"),
    ('{"start_s": 14, "instruction": }', "no JSON"),
    ("{" * 100_000, "no JSON"),
    ("[1, 2]", "wrong type"),
    (json.dumps({"start_s": 14.0}), "wrong type"),
    (reply(start_s="14"), "wrong type"),
    (reply(start_s=None), "wrong type"),
    (reply(start_s=10.0), "no caption at that time"),
    (reply(start_s=-14.0), "no caption at that time"),
    (reply(start_s=float("nan")), "no caption at that time"),
    (reply(answer=["He", "cooks"]), "wrong type"),
    (reply(answer="  "), "not about the caption"),
    (reply(instruction=""), "empty instruction"),
    (reply(answer="An egg. " * 41), "answer too long"),
    (reply(answer="According to the caption he cracks an egg."), "mentions captions or seconds"),
    (reply(answer="He cracks an egg at 14.0 seconds."), "mentions captions or seconds"),
    (reply(answer="There is a dog here now."), "not about the caption"),
    (reply(answer=EXAMPLE.answer), "copied from an example"),
]


@pytest.mark.parametrize(("text", "reason"), BAD, ids=[f"{i}-{b[1]}" for i, b in enumerate(BAD)])
def test_bad_replies_are_named(text: str, reason: str) -> None:
    with pytest.raises(BadRow) as caught:
        read_reply(text, ROW, [EXAMPLE])
    assert caught.value.reason == reason


def test_the_examples_that_ship_are_themselves_usable() -> None:
    for example in WriterConfig(url="", model="").examples:
        turns = tuple(caption(*one) for one in example.captions)
        row = TrainingRow(video="a.mp4", turns=turns, kind="dense", source="")
        text = reply(example.start_s, example.instruction, example.answer)
        assert read_reply(text, row).start_s == example.start_s


@pytest.mark.parametrize("line", ["{", "[]", '{"captions": [[1, 2]]}', '{"captions": []}'])
def test_examples_that_are_none(tmp_path: Path, line: str) -> None:
    (tmp_path / "examples.jsonl").write_text(line)
    with pytest.raises(ValueError, match=r"examples\.jsonl:1"):
        read_examples(tmp_path / "examples.jsonl")
