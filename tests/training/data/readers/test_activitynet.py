"""ActivityNet Captions."""

from __future__ import annotations

from pathlib import Path

from tests.training.data.readers.dataset_files import (
    ACTIVITYNET,
    captions_of,
    rows_of,
    written,
)
from training.data.readers.activitynet import read_activitynet


def test_activitynet(tmp_path: Path) -> None:
    (row,) = rows_of(read_activitynet, written(tmp_path, ACTIVITYNET))
    assert (row.video, row.time_range, row.kind) == ("v_QOlSCBRmfWY.mp4", (0.0, 82.73), "dense")
    assert captions_of(row)[1] == (
        17.37,
        60.81,
        "The girl dances around the room while the camera captures her movements.",
    )
