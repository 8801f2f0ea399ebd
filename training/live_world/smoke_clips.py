"""What the smoke recipe trains on: a few live-world clips and their questions, as rows like any others."""

from __future__ import annotations

import json
from pathlib import Path

from training.data.row import Row, Turn, write_rows
from training.live_world.write_clips import write_clips

SEED = 77
NUM_CLIPS = 8


def smoke_rows(work: Path) -> list[str]:
    """Paths of row files, written below `work` once."""
    clips, rows = work / "clips", work / "clips" / "rows.parquet"
    if not rows.is_file():
        write_clips(SEED, NUM_CLIPS, clips)
        write_rows(str(rows), question_rows(clips))
    return [str(rows)]


def question_rows(clips: Path) -> list[Row]:
    """The questions of a folder that `live_world.py` wrote, each with its answer and the time of both."""
    asked = json.loads((clips / "questions.json").read_text())
    return [
        Row(
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
        for name in sorted(asked)
        for question in asked[name]
    ]
