"""Makes dense rows of captioned videos. All readers of captions use it.

The caption is the answer, and the instruction is always the same: `training/dense/dense_instructions.py` writes better
instructions. A bad caption is reported and counted; the other captions of its video are kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from training.data.bad_row import BadRow, BadRowCounter
from training.data.json_fields import as_number, as_text
from training.data.training_row import MAX_TURNS, TrainingRow, Turn

INSTRUCTION = "Tell me what happens."
# The location of a video in its file, and a function that reads the video and may raise BadRow.
VideoEntry = tuple[str, Callable[[], "CaptionedVideo"]]


@dataclass(frozen=True, slots=True, kw_only=True)
class CaptionedVideo:
    """The unchecked captions of a video. captions: (start_s, end_s, text) of each."""

    video: str
    duration_s: object  # seconds, or None where the data set does not say
    captions: Sequence[tuple[object, object, object]]


def captioned_rows(source: str, entries: Iterator[VideoEntry], bad: BadRowCounter) -> Iterator[TrainingRow]:
    """One dense row for each video, with its good captions. `bad` counts captions and unreadable videos."""
    seen: set[str] = set()
    for where, make in entries:
        try:
            found = make()
            if where in seen:
                raise BadRow("duplicate id", f"{where} was there before")
            if not 0 < len(found.captions) <= MAX_TURNS:
                reason = "too many captions" if found.captions else "no captions"
                raise BadRow(reason, f"got {len(found.captions)}, wanted 1 to {MAX_TURNS}")
            seconds = None if found.duration_s is None else as_number("duration", found.duration_s)
        except BadRow as error:
            bad.skip(where, error)
            continue
        seen.add(where)
        time_range = None if seconds is None else (0.0, seconds)
        turns = list(_good_turns(where, found, time_range, bad))
        if turns:
            turns.sort(key=lambda turn: turn.start_s)
            yield TrainingRow(
                video=found.video, time_range=time_range, turns=tuple(turns), kind="dense", source=source
            )


def _good_turns(
    where: str, found: CaptionedVideo, time_range: tuple[float, float] | None, bad: BadRowCounter
) -> Iterator[Turn]:
    for number, (start, end, text) in enumerate(found.captions):
        try:
            turn = Turn(
                start_s=as_number("start", start),
                end_s=as_number("end", end),
                instruction=INSTRUCTION,
                answer=as_text("caption", text).strip(),
            )
            # A row with this caption alone: the checks of any row apply.
            TrainingRow(video=found.video, time_range=time_range, turns=(turn,), kind="dense", source="")
        except BadRow as error:
            bad.skip(f"{where}: caption {number}", error)
            continue
        bad.add_good()
        yield turn
