"""Training data of the smoke recipe: a few live-world clips and their questions, as rows."""

from __future__ import annotations

import json
from pathlib import Path

from training.data.row_files import write_rows
from training.data.training_row import TrainingRow, Turn
from training.live_world.write_clips import write_clips

SEED = 77
NUM_CLIPS = 8
VALIDATION_SEED = 78
NUM_VALIDATION_CLIPS = 1


def smoke_rows(work: Path) -> list[str]:
    """Write clips and a row file below `work`, unless they exist; returns the paths of row files."""
    return _rows(work / "clips", SEED, NUM_CLIPS)


def smoke_validation_rows(work: Path) -> list[str]:
    """The same of other clips, for validation."""
    return _rows(work / "validation", VALIDATION_SEED, NUM_VALIDATION_CLIPS)


def _rows(clips: Path, seed: int, num: int) -> list[str]:
    rows = clips / "rows.parquet"
    if not rows.is_file():
        write_clips(seed, num, clips)
        write_rows(str(rows), question_rows(clips))
    return [str(rows)]


def question_rows(clips: Path) -> list[TrainingRow]:
    """The questions of a clip folder as dense rows, each with its answer and interval."""
    questions = json.loads((clips / "questions.json").read_text())
    return [
        TrainingRow(
            video=str((clips / name).resolve()),
            kind="dense",
            source="live_world",
            turns=(
                Turn(
                    start_s=question["ask_s"],
                    end_s=question["end_s"],
                    instruction=question["instruction"],
                    answer=question["answer"],
                ),
            ),
        )
        for name in sorted(questions)
        for question in questions[name]
    ]
