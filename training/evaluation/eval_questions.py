"""The questions of a streaming evaluation (paper section 4): each is asked at a time of a video and has a right answer.

They are read from dense rows (`training/data/training_row.py`). A row may also have the video's captions:

    {"video": "a.mp4", "kind": "dense", "source": "vript", "turns": [...],
     "captions": [{"start_s": 0.0, "end_s": 4.0, "caption": "A man opens the fridge."}]}

or from a folder of live-world clips, which also has the world's whole truth.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from training.data.bad_row import BadRow, BadRowCounter
from training.data.row_files import records
from training.data.training_row import Caption, TrainingRow, parse_captions
from training.live_world.clips import Clip, find_clips, question_of
from training.live_world.questions import Question
from training.live_world.world import TEST_SEEDS, World


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalQuestion:
    """A question to ask when the video is at `ask_s`. Names are unique. `world`, `world_question`: live world only."""

    name: str
    video: Path
    ask_s: float
    instruction: str
    answer: str
    captions: tuple[Caption, ...] = ()
    world: World | None = None
    world_question: Question | None = None


def question_name(clip: Clip, number: int) -> str:
    """The name of a live-world clip's question. It is the same in every folder."""
    return f"{clip.world.seed}-{clip.path.stem}#{number}"


def live_world_questions(folder: Path, num_clips: int | None = None) -> list[EvalQuestion]:
    """The questions of held-out clips; ValueError when a clip is not held out, FileNotFoundError without clips."""
    clips = find_clips(folder)[:num_clips]
    if wrong := [c.path.name for c in clips if c.world.seed not in TEST_SEEDS]:
        raise ValueError(f"{folder}: {wrong[0]} is not held out; wanted seeds from {TEST_SEEDS.start} on")
    captions = json.loads((folder / "captions.json").read_text())
    questions = json.loads((folder / "questions.json").read_text())
    return [
        EvalQuestion(
            name=question_name(clip, number),
            video=clip.path,
            ask_s=row["ask_s"],
            instruction=row["instruction"],
            answer=row["answer"],
            captions=parse_captions(captions[clip.path.name]["captions"]),
            world=clip.world,
            world_question=question_of(row),
        )
        for clip in clips
        for number, row in enumerate(questions[clip.path.name])
    ]


def read_questions(path: Path, bad: BadRowCounter) -> list[EvalQuestion]:
    """Read one question for each turn of the dense rows of a file. Bad rows are reported and counted in `bad`.

    Paths of videos are relative to the file's folder.
    """
    questions: list[EvalQuestion] = []
    seen: set[str] = set()
    for where, value in records(str(path)):
        try:
            row = TrainingRow.from_dict(value)
            if row.kind != "dense":
                raise BadRow(
                    "not dense", f"kind: got {row.kind!r}, wanted 'dense': a question needs its time"
                )
            if row.id in seen:
                raise BadRow("duplicate id", f"{row.id} was there before")
            video = path.parent / row.video
            if not video.is_file():
                raise BadRow("no video", f"{video} is not there")
        except BadRow as error:
            bad.skip(where, error)
            continue
        seen.add(row.id)
        bad.add_good()
        questions += [
            EvalQuestion(
                name=f"{row.id}#{number}",
                video=video,
                ask_s=turn.start_s,
                instruction=turn.instruction,
                answer=turn.answer,
                captions=row.captions,
            )
            for number, turn in enumerate(row.turns)
        ]
    bad.check_share()
    return questions
