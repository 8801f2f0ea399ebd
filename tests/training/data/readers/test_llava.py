"""LLaVA-style conversations in their own layout."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from training.data.bad_row import BadRow, BadRowCounter
from training.data.readers.llava import conversation_row, read_llava
from training.data.training_row import Turn

IMAGE: dict[str, Any] = {
    "id": "000000033471",
    "image": "coco/train2017/000000033471.jpg",
    "conversations": [
        {"from": "human", "value": "<image>\nWhat are the colors of the bus in the image?"},
        {"from": "gpt", "value": "The bus in the image is white and red."},
        {"from": "human", "value": "What feature can be seen on the back of the bus?"},
        {"from": "gpt", "value": "The back of the bus features an advertisement."},
    ],
}
VIDEO: dict[str, Any] = {
    "id": "academic_source/activitynet/v_bDoe8_qwN1k-oe",
    "conversations": [
        {"from": "human", "value": "<image>\nWhat does the man do first?"},
        {"from": "gpt", "value": "He lifts the bar."},
    ],
    "data_source": "0_30_s_activitynet",
    "video": "academic_source/activitynet/v_bDoe8_qwN1k.mp4",
}
TEXT: dict[str, Any] = {
    "id": "wgByO4Y_0",
    "model": "",
    "conversations": [
        {"from": "system", "value": "You are kind."},
        {"from": "human", "value": "Name a colour."},
        {"from": "gpt", "value": "Red."},
    ],
}


def test_a_picture_a_video_and_a_text(tmp_path: Path) -> None:
    (tmp_path / "mix.json").write_text(json.dumps([IMAGE, VIDEO, TEXT]))
    bad = BadRowCounter()
    image, video, text = read_llava(tmp_path / "mix.json", "llava", bad)
    assert (image.kind, image.video) == ("image", "coco/train2017/000000033471.jpg")
    assert image.turns[0] == Turn(
        instruction="What are the colors of the bus in the image?",
        answer="The bus in the image is white and red.",
    )
    assert len(image.turns) == 2
    assert (video.kind, video.video) == ("offline", "academic_source/activitynet/v_bDoe8_qwN1k.mp4")
    assert (text.kind, text.video, len(text.turns)) == ("text", "", 1)
    assert (bad.num_good, bad.num_bad) == (3, 0)


def test_several_pictures_come_before_the_text() -> None:
    row = conversation_row(changed(image=["a.jpg", "b.jpg"]), "llava")
    assert (row.kind, row.video, row.pictures) == ("interleaved", "", ("a.jpg", "b.jpg"))
    assert {(turn.start_s, turn.end_s) for turn in row.turns} == {(1.0, 1.0)}


def test_json_lines(tmp_path: Path) -> None:
    (tmp_path / "mix.jsonl").write_text("\n".join(json.dumps(one) for one in (IMAGE, VIDEO)))
    assert len(list(read_llava(tmp_path / "mix.jsonl", "llava", BadRowCounter()))) == 2


def changed(**changes: Any) -> dict[str, Any]:
    return IMAGE | changes


SAID = IMAGE["conversations"]
BAD: list[tuple[Any, str]] = [
    (changed(image=["a.jpg", 7]), "wrong type"),
    (VIDEO | {"video": ["a.mp4", "b.mp4"]}, "wrong type"),
    (changed(image=5), "wrong type"),
    (changed(conversations="hello"), "wrong type"),
    (changed(conversations=[]), "no turns"),
    (changed(conversations=SAID[:3]), "speakers out of turn"),
    (changed(conversations=SAID[1:3]), "speakers out of turn"),
    (changed(conversations=[SAID[0], {"from": "gpt", "value": ""}]), "empty answer"),
    (changed(conversations=[{"from": "human", "value": "<image>\n"}, SAID[1]]), "empty instruction"),
    (changed(conversations=[SAID[0], {"from": "gpt", "value": None}]), "wrong type"),
    (changed(conversations=[SAID[0], "The bus is red."]), "wrong type"),
    (changed(conversations=SAID * 5000), "too many turns"),
    ("hello", "wrong type"),
]


@pytest.mark.parametrize(("value", "reason"), BAD)
def test_bad_conversations_are_named(value: Any, reason: str) -> None:
    with pytest.raises(BadRow) as caught:
        conversation_row(value, "llava")
    assert caught.value.reason == reason


def test_the_same_twice_counts_once_but_ids_may_repeat(tmp_path: Path) -> None:
    other = changed(conversations=SAID[2:])  # the id and the picture of the first: LLaVA has many such
    (tmp_path / "mix.json").write_text(json.dumps([IMAGE, other, IMAGE]))
    bad = BadRowCounter(max_share=1.0)
    assert len(list(read_llava(tmp_path / "mix.json", "llava", bad))) == 2
    assert bad.reasons == {"duplicate id": 1}
