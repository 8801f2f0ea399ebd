"""Reads MMC4: documents whose pictures stand between their sentences.

    {"url": "https://...", "text_list": ["A first sentence.", "A second one."],
     "image_info": [{"image_name": "b9040a0dbb22.jpg", "matched_text_index": 1, "matched_sim": 0.27}]}

After each picture the model tells the sentences up to the next one, as in the paper's pretraining on interleaved data.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from training.data.bad_row import BadRow, BadRowCounter
from training.data.json_fields import as_list, as_mapping, as_number, as_text
from training.data.row_files import good_rows, records
from training.data.training_row import TrainingRow, Turn

INSTRUCTION = "Go on."


def read_mmc4(path: Path, source: str, bad: BadRowCounter) -> Iterator[TrainingRow]:
    """One row for each document of a shard (`docs_shard_0_v2.jsonl`, also with `.gz`)."""
    return good_rows(records(str(path)), lambda value: document_row(value, source), bad)


def document_row(value: object, source: str) -> TrainingRow:
    """One document as a row. Raises BadRow if it has no picture, or no text after one."""
    document = as_mapping("document", value)
    sentences = [
        as_text("text_list", text).strip() for text in as_list("text_list", document.get("text_list"))
    ]
    placed: list[tuple[int, str]] = []
    for info in as_list("image_info", document.get("image_info")):
        picture = as_mapping("image_info", info)
        place = as_number("matched_text_index", picture.get("matched_text_index"))
        placed.append((int(place), as_text("image_name", picture.get("image_name"))))
    if not placed:
        raise BadRow("no pictures", "image_info: got none")
    placed.sort(key=lambda one: one[0])
    turns: list[Turn] = []
    before = " ".join(sentences[: placed[0][0]])
    for number, (place, _) in enumerate(placed):
        end = placed[number + 1][0] if number + 1 < len(placed) else len(sentences)
        if text := " ".join(sentences[place:end]):
            turn = Turn(
                start_s=number,
                end_s=number,
                instruction=INSTRUCTION if turns or not before else before,
                answer=text,
            )
            turns.append(turn)
    return TrainingRow(
        video="",
        pictures=tuple(name for _, name in placed),
        turns=tuple(turns),
        kind="interleaved",
        source=source,
    )
