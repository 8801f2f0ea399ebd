"""Reads YouCook2."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from training.data.bad_row import BadRowCounter
from training.data.readers.annotation_database import database_videos
from training.data.readers.captioned_video import captioned_rows
from training.data.training_row import TrainingRow


def read_youcook2(path: Path, source: str, bad: BadRowCounter) -> Iterator[TrainingRow]:
    """Rows of `youcookii_annotations_trainval.json`."""
    return captioned_rows(source, database_videos(path, "annotations", "sentence"), bad)
