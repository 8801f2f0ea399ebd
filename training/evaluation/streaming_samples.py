"""What a streaming evaluation asks (paper section 4): a question put at a moment of a video, and the right answer.

Read from dense rows (`training/data/row.py`), each of which may also have the video's captions:

    {"video": "a.mp4", "kind": "dense", "source": "vript", "turns": [...],
     "captions": [{"start_s": 0.0, "end_s": 4.0, "caption": "A man opens the fridge."}]}

or from a folder of live-world clips, whose truth is known besides.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from training.data.bad_row import BadRow, BadRows, as_list, as_mapping, as_number, as_text
from training.data.row import Row, records
from training.live_world.clips import Clip, find_clips, question_of
from training.live_world.questions import Question
from training.live_world.world import TEST_SEEDS, World


@dataclass(frozen=True, slots=True, kw_only=True)
class Caption:
    """What was seen in an interval of the video."""

    start_s: float
    end_s: float
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """A question to ask when the video is at `ask_s`. `name` is unique; `world` and `question`: live world only."""

    name: str
    video: Path
    ask_s: float
    instruction: str
    answer: str
    captions: tuple[Caption, ...] = ()
    world: World | None = None
    question: Question | None = None


def sample_name(clip: Clip, number: int) -> str:
    """The name of a live-world clip's question, in all folders."""
    return f"{clip.world.seed}-{clip.path.stem}#{number}"


def live_world_samples(folder: Path, num_clips: int | None = None) -> list[Sample]:
    """The questions of held-out clips; ValueError when one is not held out, FileNotFoundError when there are none."""
    clips = find_clips(folder)[:num_clips]
    if wrong := [c.path.name for c in clips if c.world.seed not in TEST_SEEDS]:
        raise ValueError(f"{folder}: {wrong[0]} is not held out; wanted seeds from {TEST_SEEDS.start} on")
    told = json.loads((folder / "captions.json").read_text())
    asked = json.loads((folder / "questions.json").read_text())
    return [
        Sample(
            name=sample_name(clip, number),
            video=clip.path,
            ask_s=row["ask_s"],
            instruction=row["instruction"],
            answer=row["answer"],
            captions=captions_of(told[clip.path.name]["captions"]),
            world=clip.world,
            question=question_of(row),
        )
        for clip in clips
        for number, row in enumerate(asked[clip.path.name])
    ]


def captions_of(values: Sequence[Any]) -> tuple[Caption, ...]:
    """Checked captions, in the order of their times; raises BadRow."""
    captions: list[Caption] = []
    for number, value in enumerate(values):
        name = f"captions[{number}]"
        row = as_mapping(name, value)
        start_s, end_s = (as_number(f"{name}.{key}", row.get(key)) for key in ("start_s", "end_s"))
        if end_s < start_s:
            raise BadRow("reversed interval", f"{name}: got {start_s:g} to {end_s:g} s")
        captions.append(
            Caption(start_s=start_s, end_s=end_s, text=as_text(f"{name}.caption", row.get("caption")))
        )
    return tuple(sorted(captions, key=lambda caption: caption.start_s))


def read_samples(path: Path, bad: BadRows) -> list[Sample]:
    """A sample for each turn of the dense rows of a file; bad rows are named and counted in `bad`.

    Videos are looked for beside the file.
    """
    samples: list[Sample] = []
    seen: set[str] = set()
    for where, value in records(str(path)):
        try:
            row = Row.from_dict(value)
            if row.kind != "dense":
                raise BadRow(
                    "not dense", f"kind: got {row.kind!r}, wanted 'dense': a question needs its time"
                )
            if row.id in seen:
                raise BadRow("duplicate id", f"{row.id} was there before")
            video = path.parent / row.video
            if not video.is_file():
                raise BadRow("no video", f"{video} is not there")
            captions = captions_of(as_list("captions", as_mapping("row", value).get("captions") or ()))
        except BadRow as error:
            bad.skip(where, error)
            continue
        seen.add(row.id)
        bad.good()
        samples += [
            Sample(
                name=f"{row.id}#{number}",
                video=video,
                ask_s=turn.start_s,
                instruction=turn.instruction,
                answer=turn.answer,
                captions=captions,
            )
            for number, turn in enumerate(row.turns)
        ]
    bad.finish()
    return samples
