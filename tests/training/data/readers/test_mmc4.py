"""Documents of MMC4 with pictures between their sentences."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from training.data.bad_row import BadRow, BadRowCounter
from training.data.readers.mmc4 import document_row, read_mmc4

SENTENCES = ["How to bake.", "Mix it.", "Knead it.", "Wait.", "Bake it."]


def document(*places: int, **changes: Any) -> dict[str, Any]:
    images = [
        {
            "image_name": f"{number}.jpg",
            "raw_url": "https://x",
            "matched_text_index": place,
            "matched_sim": 0.3,
        }
        for number, place in enumerate(places)
    ]
    return {"url": "https://y", "text_list": SENTENCES, "image_info": images, **changes}


def told(row_of: dict[str, Any]) -> list[tuple[float, str, str]]:
    return [(turn.start_s, turn.instruction, turn.answer) for turn in document_row(row_of, "mmc4").turns]


def test_each_picture_is_followed_by_its_sentences() -> None:
    row = document_row(document(3, 1), "mmc4")
    assert row.pictures == ("1.jpg", "0.jpg")  # in the order of the text
    assert told(document(3, 1)) == [(0, "How to bake.", "Mix it. Knead it."), (1, "Go on.", "Wait. Bake it.")]


def test_pictures_at_one_place_come_together() -> None:
    assert told(document(0, 0, 2)) == [
        (1, "Go on.", "How to bake. Mix it."),
        (2, "Go on.", "Knead it. Wait. Bake it."),
    ]


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        (document(), "no pictures"),
        (document(9), "no turns"),
        (document(0, text_list=[1]), "wrong type"),
        (document(0, image_info=[{}]), "wrong type"),
        (document(*range(5), *[0] * 60), "wrong number of pictures"),
    ],
)
def test_documents_that_cannot_be_used(wrong: dict[str, Any], reason: str) -> None:
    with pytest.raises(BadRow) as error:
        document_row(wrong, "mmc4")
    assert error.value.reason == reason


def test_a_shard(tmp_path: Path) -> None:
    (tmp_path / "docs.jsonl").write_text("\n".join(json.dumps(document(place)) for place in (0, 1, 2)))
    assert len(list(read_mmc4(tmp_path / "docs.jsonl", "mmc4", BadRowCounter()))) == 3
