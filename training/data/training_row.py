"""The row format of all training data, and its checks.

    {"video": "clips/a.mp4", "time_range": [0.0, 40.0], "kind": "dense", "source": "ego4d",
     "turns": [{"start_s": 5.0, "end_s": 10.0, "instruction": "What is he doing now?", "answer": "He is cooking."}],
     "captions": [{"start_s": 4.0, "end_s": 12.0, "caption": "A man fries an egg."}]}

`time_range`, `captions` and `id` may be absent. Rows are in Parquet or JSON lines files, local or in any storage that
fsspec supports. A row that cannot be used raises BadRow.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, get_args

try:
    import pyarrow as pa
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f"{error.name} is not installed; training needs: pip install 'streamchat[train]'"
    ) from error

from training.data.bad_row import BadRow
from training.data.json_fields import as_interval, as_list, as_mapping, as_number, as_text

Kind = Literal["dense", "offline", "image", "interleaved", "text"]
KINDS: tuple[Kind, ...] = get_args(Kind)
MAX_PICTURES = 64  # of an interleaved row
MAX_TURNS = 5000  # a row with more is a mistake: an hour of Ego4D has about 800 narrations
SLACK_S = 1.0  # captions may end this much after their clip: durations are rounded in most data sets

SCHEMA = pa.schema(
    {
        "id": pa.string(),
        "video": pa.string(),
        "time_range": pa.list_(pa.float64()),
        "turns": pa.list_(
            pa.struct(
                {
                    "start_s": pa.float64(),
                    "end_s": pa.float64(),
                    "instruction": pa.string(),
                    "answer": pa.string(),
                }
            )
        ),
        "kind": pa.string(),
        "pictures": pa.list_(pa.string()),
        "source": pa.string(),
        "captions": pa.list_(
            pa.struct({"start_s": pa.float64(), "end_s": pa.float64(), "caption": pa.string()})
        ),
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """An instruction, asked at `start_s`, and its answer, whose last word is spoken at `end_s` (2.2, 2.3).

    In kind "interleaved" the times are numbers of pictures: a turn sees the pictures 0 to `start_s`. In the other kinds
    but "dense" the whole video comes before the text, and the times are not used.
    """

    start_s: float = 0.0
    end_s: float = 0.0
    instruction: str
    answer: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Caption:
    """What can be seen in an interval of a video, in seconds."""

    start_s: float
    end_s: float
    caption: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingRow:
    """A video, a picture, several pictures or nothing, and a dialog about it.

    video: path or URL of a video or picture; "" in kinds "text" and "interleaved".
    pictures: paths or URLs, in kind "interleaved" only.
    time_range: seconds of the video that the row is about; None: all of it. Times count from the video's start.
    captions: what the video shows, for writers of instructions and for judges; training does not read them.
    id: the default is a hash of the content. Rows with the same id are duplicates.
    Raises BadRow if the row cannot be used.
    """

    video: str
    time_range: tuple[float, float] | None = None
    turns: tuple[Turn, ...]
    kind: Kind
    source: str
    pictures: tuple[str, ...] = ()
    captions: tuple[Caption, ...] = ()
    id: str = ""

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise BadRow("unknown kind", f"kind: got {self.kind!r}, wanted one of {', '.join(KINDS)}")
        if bool(self.video) == (self.kind in ("text", "interleaved")):
            raise BadRow("no video", f"got video {self.video!r} with kind {self.kind!r}")
        if not (0 < len(self.pictures) <= MAX_PICTURES if self.kind == "interleaved" else not self.pictures):
            raise BadRow("wrong number of pictures", f"got {len(self.pictures)} with kind {self.kind!r}")
        if not 0 < len(self.turns) <= MAX_TURNS:
            reason = "too many turns" if self.turns else "no turns"
            raise BadRow(reason, f"turns: got {len(self.turns)}, wanted 1 to {MAX_TURNS}")
        if self.time_range:
            _check_interval("time_range", *self.time_range)
        for number, turn in enumerate(self.turns):
            if not turn.instruction.strip() or not turn.answer.strip():
                empty = "answer" if turn.instruction.strip() else "instruction"
                raise BadRow(f"empty {empty}", f"turns[{number}].{empty} is empty")
            if self.kind == "dense":
                self._check_times(f"turns[{number}]", turn)
            if self.kind == "interleaved" and not 0 <= turn.start_s <= turn.end_s < len(self.pictures):
                got = f"turns[{number}]: got {turn.start_s:g} to {turn.end_s:g}"
                raise BadRow("unknown picture", f"{got}, wanted numbers of {len(self.pictures)} pictures")
        if not self.id:
            content = json.dumps({**asdict(self), "id": ""}, sort_keys=True)
            object.__setattr__(self, "id", hashlib.blake2b(content.encode(), digest_size=12).hexdigest())

    def _check_times(self, name: str, turn: Turn) -> None:
        _check_interval(name, turn.start_s, turn.end_s)
        start_s, end_s = self.time_range or (0.0, math.inf)
        if turn.start_s < start_s - SLACK_S or turn.end_s > end_s + SLACK_S:
            got = f"got {turn.start_s:g} to {turn.end_s:g} s"
            raise BadRow("outside the clip", f"{name}: {got}, wanted within {start_s:g} to {end_s:g} s")

    @classmethod
    def from_dict(cls, values: object) -> TrainingRow:
        """Make a row from the values of a file. Turns are sorted by time. Raises BadRow."""
        row = as_mapping("row", values)
        time_range = row.get("time_range")
        timed = row.get("kind") in ("dense", "interleaved")
        turns = [
            _turn(f"turns[{i}]", turn, timed) for i, turn in enumerate(as_list("turns", row.get("turns")))
        ]
        if timed:
            turns.sort(key=lambda turn: turn.start_s)
        return cls(
            video=as_text("video", row.get("video", "")),
            time_range=None if time_range is None else as_interval("time_range", time_range),
            turns=tuple(turns),
            kind=as_text("kind", row.get("kind")),  # type: ignore[arg-type]  # checked when made
            source=as_text("source", row.get("source", "")),
            pictures=tuple(as_text("picture", p) for p in as_list("pictures", row.get("pictures") or ())),
            captions=parse_captions(as_list("captions", row.get("captions") or ())),
            id=as_text("id", row.get("id") or ""),
        )

    def as_dict(self) -> dict[str, Any]:
        """The row as a dictionary, for files."""
        return asdict(self)


def parse_captions(values: Sequence[object]) -> tuple[Caption, ...]:
    """Check captions and sort them by time. Raises BadRow."""
    captions: list[Caption] = []
    for number, value in enumerate(values):
        name = f"captions[{number}]"
        row = as_mapping(name, value)
        start_s, end_s = (as_number(f"{name}.{key}", row.get(key)) for key in ("start_s", "end_s"))
        _check_interval(name, start_s, end_s)
        text = as_text(f"{name}.caption", row.get("caption"))
        captions.append(Caption(start_s=start_s, end_s=end_s, caption=text))
    return tuple(sorted(captions, key=lambda caption: caption.start_s))


def captions_of(row: TrainingRow) -> tuple[Caption, ...]:
    """The captions of a captioned video, whose answers they are (`readers/captioned_video.py`)."""
    return tuple(Caption(start_s=turn.start_s, end_s=turn.end_s, caption=turn.answer) for turn in row.turns)


def frame_number(time_s: float, frames_per_second: float) -> int:
    """Index of the newest frame at a time, if frame k is taken at k / frames_per_second."""
    return math.floor(time_s * frames_per_second + 1e-6)


def cut_windows(row: TrainingRow, max_frames: int, frames_per_second: float) -> list[TrainingRow]:
    """Cut a dense row of a long video into windows in which each word has the frames that a server would show.

    A server shows the newest `max_frames` frames at every moment. So a window begins that many frames before its first
    question, or with the row, and ends with its last answer. Turns share a window of at most `2 * max_frames` frames.
    An answer that lasts longer than `max_frames` frames is spoken faster.
    """
    longest_s = (max_frames - 1) / frames_per_second
    row_start_s = row.time_range[0] if row.time_range else 0.0
    windows: list[tuple[float, list[Turn]]] = []  # each with its start
    for whole in sorted(row.turns, key=lambda turn: turn.start_s):
        turn = replace(whole, end_s=min(whole.end_s, whole.start_s + longest_s))
        if not windows or turn.end_s > windows[-1][0] + 2 * longest_s:
            # An answer may begin SLACK_S before its row.
            windows.append((max(turn.start_s - longest_s, min(row_start_s, turn.start_s)), []))
        windows[-1][1].append(turn)
    return [
        replace(
            row, id="", turns=tuple(turns), time_range=(start_s, max(t.end_s for t in turns)), captions=()
        )
        for start_s, turns in windows
    ]


def _turn(name: str, values: object, timed: bool) -> Turn:
    turn = as_mapping(name, values)
    times = [
        as_number(f"{name}.{key}", turn.get(key, None if timed else 0.0)) for key in ("start_s", "end_s")
    ]
    texts = [as_text(f"{name}.{key}", turn.get(key)) for key in ("instruction", "answer")]
    return Turn(start_s=times[0], end_s=times[1], instruction=texts[0], answer=texts[1])


def _check_interval(name: str, start_s: float, end_s: float) -> None:
    got = f"{name}: got {start_s:g} to {end_s:g} s"
    if not (math.isfinite(start_s) and math.isfinite(end_s)) or start_s < 0:
        raise BadRow("impossible time", f"{got}, wanted seconds from 0 on")
    if end_s < start_s:
        raise BadRow("reversed interval", f"{got}, wanted the start first")
