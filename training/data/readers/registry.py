"""All readers, by the format names of `make_rows.py`.

To add a data set, write a file beside this one with a function of the type `Reader`, and name it below. A set of
captioned videos only says where its captions are (`captioned_video.py` does the rest; `activitynet.py` is a short
example). A set of conversations makes its own rows (`llava.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from training.data.bad_row import BadRowCounter
from training.data.readers.activitynet import read_activitynet
from training.data.readers.coin import read_coin
from training.data.readers.ego4d import read_ego4d
from training.data.readers.live_world import read_live_world
from training.data.readers.llava import read_llava
from training.data.readers.mmc4 import read_mmc4
from training.data.readers.vript import read_vript
from training.data.readers.youcook2 import read_youcook2
from training.data.row_files import read_rows
from training.data.training_row import TrainingRow

# (file or folder, name of the source, counter of bad data) -> rows
Reader = Callable[[Path, str, BadRowCounter], Iterator[TrainingRow]]


def _read_own_rows(path: Path, source: str, bad: BadRowCounter) -> Iterator[TrainingRow]:
    """Rows in our own format; they keep the name of their source."""
    return read_rows([str(path)], bad)


CAPTION_READERS: dict[str, Reader] = {  # videos with captions: `bad` counts captions
    "ego4d": read_ego4d,
    "vript": read_vript,
    "activitynet": read_activitynet,
    "coin": read_coin,
    "youcook2": read_youcook2,
    "live_world": read_live_world,
}
ROW_READERS: dict[str, Reader] = {  # ready to train on: `bad` counts rows
    "llava": read_llava,
    "mmc4": read_mmc4,
    "rows": _read_own_rows,
}
READERS: dict[str, Reader] = CAPTION_READERS | ROW_READERS
