"""What holds for every reader: no value ends a run, and a file that cannot be read is reported at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.training.data.readers.dataset_files import (
    ACTIVITYNET,
    COIN,
    EGO4D_V1,
    EGO4D_V2,
    LIVE_WORLD,
    YOUCOOK2,
    rows_of,
    written,
)
from training.data.bad_row import BadRow, BadRowCounter
from training.data.readers.activitynet import read_activitynet
from training.data.readers.coin import read_coin
from training.data.readers.ego4d import read_ego4d
from training.data.readers.live_world import read_live_world
from training.data.readers.vript import read_vript
from training.data.readers.youcook2 import read_youcook2

SAMPLES: list[tuple[Any, Any]] = [
    (read_ego4d, EGO4D_V1),
    (read_ego4d, EGO4D_V2),
    (read_activitynet, ACTIVITYNET),
    (read_coin, COIN),
    (read_youcook2, YOUCOOK2),
    (read_live_world, LIVE_WORLD),
]


@pytest.mark.parametrize(("reader", "good"), SAMPLES)
@pytest.mark.parametrize("nonsense", [None, 3, "video", [], {}, [1], {"narrations": 5}, {"captions": [7]}])
def test_no_value_in_place_of_a_video_ends_a_run(
    tmp_path: Path, reader: Any, good: dict[str, Any], nonsense: Any
) -> None:
    inner = next((key for key in ("database", "videos") if key in good), "")
    value = {inner: {"x": nonsense} | good[inner]} if inner else {"x": nonsense} | good
    bad = BadRowCounter(max_share=1.0)
    assert rows_of(reader, written(tmp_path, value), bad)
    assert bad.num_bad >= 1


def test_a_file_that_is_none_is_said_at_once(tmp_path: Path) -> None:
    (tmp_path / "set.json").write_text("{")
    with pytest.raises(ValueError, match=r"set\.json: got no JSON"):
        rows_of(read_activitynet, tmp_path / "set.json")
    with pytest.raises(FileNotFoundError):
        rows_of(read_activitynet, tmp_path / "none.json")
    with pytest.raises(BadRow, match="wanted an object"):
        rows_of(read_coin, written(tmp_path, [1]))
    with pytest.raises(FileNotFoundError, match=r"_caption\.json in it"):
        rows_of(read_vript, tmp_path)
