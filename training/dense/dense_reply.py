"""Examples for the prompt, and the check of a language model's reply (paper section 2.2)."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from training.data.bad_row import BadRow
from training.data.json_fields import as_list, as_mapping, as_number, as_text, object_in
from training.data.training_row import TrainingRow, Turn

MAX_DISTANCE_S = 0.5  # from a moment to its caption; prompts show tenths of seconds
MAX_WORDS = 80
WORDS_PER_SECOND = 4.0  # speaking rate; the answer to a short caption may last longer than the caption
FORBIDDEN = re.compile(r"\bcaptions?\b|\btimestamps?\b|\d\s*(s|secs?|seconds?)\b", re.IGNORECASE)
# fmt: off
STOP_WORDS = {
    "the", "and", "that", "this", "what", "with", "there", "here", "now", "are", "you", "your", "its",
}
# fmt: on


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """An example in the prompt: a captioned part of a video with an instruction and an answer."""

    captions: tuple[tuple[float, float, str], ...]
    start_s: float
    instruction: str
    answer: str

    @classmethod
    def from_dict(cls, value: object) -> Example:
        """Raises BadRow."""
        fields = as_mapping("example", value)
        captions = [as_list("caption", one) for one in as_list("captions", fields.get("captions"))]
        if not captions or any(len(one) != 3 for one in captions):
            raise BadRow("wrong type", "captions: wanted [start_s, end_s, text] each")
        return cls(
            captions=tuple(
                (as_number("start", a), as_number("end", b), as_text("text", c)) for a, b, c in captions
            ),
            start_s=as_number("start_s", fields.get("start_s")),
            instruction=as_text("instruction", fields.get("instruction")),
            answer=as_text("answer", fields.get("answer")),
        )


def read_examples(path: Path) -> tuple[Example, ...]:
    """Read examples from a JSON-lines file; ValueError for a line that is no example."""
    examples: list[Example] = []
    for number, line in enumerate(path.read_text().splitlines(), 1):
        try:
            examples.append(Example.from_dict(json.loads(line)))
        except ValueError as error:
            raise ValueError(f"{path}:{number}: {error}") from error
    return tuple(examples)


def caption_triples(row: TrainingRow) -> tuple[tuple[float, float, str], ...]:
    """The captions of a captioned row, as examples keep them."""
    return tuple((turn.start_s, turn.end_s, turn.answer) for turn in row.turns)


def captions_text(captions: Sequence[tuple[float, float, str]]) -> str:
    """Captions as the model reads them."""
    return "\n".join(f"{start_s:.1f} to {end_s:.1f}: {text}" for start_s, end_s, text in captions)


def read_reply(text: str, row: TrainingRow, examples: Sequence[Example] = ()) -> Turn:
    """Read a reply as a turn with its interval; raises BadRow when the reply does not fit the row's captions."""
    fields = object_in(text)
    start_s = as_number("start_s", fields.get("start_s"))
    instruction = as_text("instruction", fields.get("instruction")).strip()
    answer = as_text("answer", fields.get("answer")).strip()
    caption = _caption_at(row, start_s)
    num_words = len(answer.split())
    if num_words > MAX_WORDS:
        raise BadRow("answer too long", f"got {num_words} words, wanted at most {MAX_WORDS}")
    if found := FORBIDDEN.search(f"{instruction} {answer}"):
        raise BadRow(
            "mentions captions or seconds", f"got {found[0]!r} in {instruction!r:.80}, {answer!r:.80}"
        )
    if any(answer == example.answer or instruction == example.instruction for example in examples):
        raise BadRow("copied from an example", f"got {instruction!r:.80}, {answer!r:.80}")
    if not _words(answer) & _words(caption.answer):
        raise BadRow(
            "not about the caption", f"got {answer!r:.80}, wanted something of {caption.answer!r:.80}"
        )
    start_s = max(start_s, caption.start_s)
    spoken_s = start_s + (num_words - 1) / WORDS_PER_SECOND
    last_s = row.time_range[1] if row.time_range else spoken_s
    turn = Turn(
        start_s=start_s,
        end_s=max(min(spoken_s, last_s), caption.end_s),
        instruction=instruction,
        answer=answer,
    )
    TrainingRow(
        video=row.video, time_range=row.time_range, turns=(turn,), kind="dense", source=row.source
    )  # checks it
    return turn


def _caption_at(row: TrainingRow, start_s: float) -> Turn:
    """The caption that contains a moment; of several, the one that starts nearest to it."""
    near = [
        turn for turn in row.turns if turn.start_s - MAX_DISTANCE_S <= start_s <= turn.end_s + MAX_DISTANCE_S
    ]
    if not near:
        times = ", ".join(f"{turn.start_s:.1f}" for turn in row.turns[:8])
        raise BadRow("no caption at that time", f"start_s: got {start_s:g}, wanted one of {times}")
    return min(near, key=lambda turn: abs(turn.start_s - start_s))


def _words(text: str) -> set[str]:
    """Content words, cut to their first letters."""
    words = re.findall(r"\w+", text.casefold())
    return {word[:5] for word in words if len(word) > 2 and word not in STOP_WORDS}
