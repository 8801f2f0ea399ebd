"""Reads LLaVA-style conversations about pictures and videos (LLaVA, ShareGPT4V, Eagle, LLaVA-Video).

    [{"id": "000000033471", "image": "coco/train2017/000000033471.jpg",
      "conversations": [{"from": "human", "value": "<image>\\nWhat is this?"}, {"from": "gpt", "value": "A bus."}]}]

`image` (one or a list), `video` or neither; a JSON list, or JSON lines.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from training.data.bad_row import BadRow, BadRowCounter
from training.data.json_fields import as_list, as_mapping, as_text
from training.data.readers.json_file import list_entries
from training.data.row_files import good_rows, records
from training.data.training_row import Kind, TrainingRow, Turn

# Where other models put the frames; here frames are not part of the text.
PLACEHOLDER = re.compile(r"\s*<(image|video)>\s*")
SPEAKERS = {"human": "human", "user": "human", "gpt": "gpt", "assistant": "gpt"}


def read_llava(path: Path, source: str, bad: BadRowCounter) -> Iterator[TrainingRow]:
    """One row for each conversation. Ids repeat in these data sets, so only equal content is a duplicate."""
    return good_rows(_records(path), lambda value: conversation_row(value, source), bad)


def _records(path: Path) -> Iterator[tuple[str, object]]:
    if path.suffix != ".json":
        yield from records(str(path))
        return
    for number, value in enumerate(list_entries(path), 1):
        yield f"{path}:{number}", value


def conversation_row(value: object, source: str) -> TrainingRow:
    """One conversation as a row; raises BadRow."""
    entry = as_mapping("conversation", value)
    kind: Kind = "image" if entry.get("image") else "offline" if entry.get("video") else "text"
    video = {"image": entry.get("image"), "offline": entry.get("video"), "text": ""}[kind]
    turns = _turns(entry.get("conversations"))
    if isinstance(video, list) and len(video) == 1:
        video = video[0]
    if isinstance(video, list) and kind == "image":  # all of them come before the text
        pictures = tuple(as_text("image", picture) for picture in video)
        last = float(len(pictures) - 1)
        turns = tuple(replace(turn, start_s=last, end_s=last) for turn in turns)
        return TrainingRow(video="", pictures=pictures, turns=turns, kind="interleaved", source=source)
    return TrainingRow(video=as_text(kind, video), turns=turns, kind=kind, source=source)


def _turns(values: object) -> tuple[Turn, ...]:
    messages: list[tuple[str, str]] = []
    for number, value in enumerate(as_list("conversations", values)):
        message = as_mapping(f"conversations[{number}]", value)
        speaker = message.get("from")
        if speaker == "system":
            continue
        text = as_text(f"conversations[{number}].value", message.get("value"))
        messages.append((SPEAKERS.get(str(speaker), str(speaker)), PLACEHOLDER.sub(" ", text).strip()))
    wanted = ["human", "gpt"] * (len(messages) // 2)
    if [speaker for speaker, _ in messages] != wanted:
        got = ", ".join(speaker for speaker, _ in messages[:8])
        raise BadRow("speakers out of turn", f"got {got or 'nobody'}, wanted human and gpt in turn")
    pairs = zip(messages[::2], messages[1::2], strict=True)
    return tuple(Turn(instruction=asked, answer=answered) for (_, asked), (_, answered) in pairs)
