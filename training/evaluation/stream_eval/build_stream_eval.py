"""Builds the questions of a streaming evaluation from captioned videos (paper, section 4).

    python training/evaluation/stream_eval/build_stream_eval.py --take 80 vript.parquet --take 20 ego4d.parquet \
        --url https://HOST/v1 --model NAME --out stream_eval

The files are captions that `training/data/make_rows.py` wrote. A language model writes an instruction and an answer for
a random part of a video, and is then asked whether they suit an evaluation. Writes `questions.jsonl`, which
`streaming_eval.py --samples` reads; `review.html`, a page on which a person looks at each question with its video and
saves those that are good; and `candidates.jsonl`, all replies. A stopped run goes on when it is started again.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from string import Template
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[3]))
from training.data.bad_row import BadRow, BadRowCounter
from training.data.json_fields import as_text, object_in
from training.data.json_lines_log import JsonLinesLog
from training.data.row_files import read_rows, write_rows
from training.data.training_row import TrainingRow, Turn, captions_of
from training.dense.caption_windows import cut_captions
from training.dense.dense_reply import caption_triples, captions_text
from training.dense.instruction_writer import EndpointRefused, InstructionWriter, WriterConfig
from training.evaluation.stream_eval.review_page import review_page

PROMPT = Path(__file__).parents[1] / "prompts" / "stream_eval_filter.md"
WINDOW_S = 40.0
AROUND_S = 60.0  # captions that far from a question go with it, for the judge


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """A part of a captioned video, for one question."""

    video: TrainingRow
    part: TrainingRow

    def question(self, turn: Turn) -> TrainingRow:
        """The row of a question, with the captions around it."""
        first_s, last_s = turn.start_s - AROUND_S, turn.end_s + AROUND_S
        captions = tuple(c for c in captions_of(self.video) if c.end_s >= first_s and c.start_s <= last_s)
        return replace(self.video, turns=(turn,), captions=captions, id=self.part.id)


class QuestionFilter:
    """Asks a language model whether a question suits an evaluation."""

    def __init__(self, writer: InstructionWriter) -> None:
        self.writer, self.prompt = writer, Template(PROMPT.read_text())

    def verdict(self, window: Window, turn: Turn) -> dict[str, Any]:
        """{"keep", "reason"}. Raises BadRow for a reply that is no verdict, EndpointRefused if none will come."""
        text = self.prompt.substitute(
            captions=captions_text(caption_triples(window.part)),
            ask_s=f"{turn.start_s:.1f}",
            instruction=turn.instruction,
            answer=turn.answer,
        )
        fields = object_in(self.writer.ask([{"role": "user", "content": text}], window.part.id)["reply"])
        keep = fields.get("keep")
        if not isinstance(keep, bool):
            raise BadRow("no verdict", f"keep: got {keep!r:.80}, wanted true or false")
        return {"keep": keep, "reason": as_text("reason", fields.get("reason", ""))}


class StreamEvalBuilder:
    """Makes candidates and keeps them in a folder."""

    def __init__(self, writer: InstructionWriter, out: Path) -> None:
        self.writer, self.filter, self.out = writer, QuestionFilter(writer), out
        self.log = JsonLinesLog(out / "candidates.jsonl")
        self.known = {outcome["request"]: outcome for outcome in self.log if not outcome.get("again")}

    def take(self, num: int, windows: Sequence[Window]) -> list[TrainingRow]:
        """The first `num` good questions, one of each window. Raises ValueError if the windows give fewer."""
        good: list[TrainingRow] = []
        remaining = iter(windows)
        while len(good) < num:
            batch = list(islice(remaining, num - len(good)))
            if not batch:
                raise ValueError(f"got {len(good)} good questions of {len(windows)} windows, wanted {num}")
            with ThreadPoolExecutor(self.writer.config.concurrency) as pool:
                outcomes = list(pool.map(self._outcome, batch))
            for window, outcome in zip(batch, outcomes, strict=True):
                if outcome["request"] not in self.known:
                    self.log.add(outcome)
                if outcome.get("refused"):
                    raise EndpointRefused(outcome["detail"])
                if outcome.get("keep"):
                    good.append(window.question(Turn(**outcome["turn"])))
            print(f"\r{len(good)}/{num} questions", end="", file=sys.stderr, flush=True)
        print(file=sys.stderr)
        return good

    def _outcome(self, window: Window) -> dict[str, Any]:
        """What the model wrote for a window, and its verdict; what is known is not asked again."""
        if known := self.known.get(window.part.id):
            return known
        outcome = self.writer.write(window.part.id, window.part.as_dict())
        if "turn" not in outcome:
            return outcome
        try:
            return outcome | self.filter.verdict(window, Turn(**outcome["turn"]))
        except BadRow as error:
            again = error.reason.startswith("endpoint")
            return outcome | {"reason": error.reason, "detail": error.detail, "again": again}
        except EndpointRefused as error:
            return outcome | {"reason": "refused", "detail": str(error), "again": True, "refused": True}


def random_windows(path: str, seed: int) -> list[Window]:
    """The windows of a file's captioned videos, in random order. Raises ValueError if it has none."""
    bad = BadRowCounter()
    rows: Iterator[TrainingRow] = (row for row in read_rows([path], bad) if row.kind == "dense")
    windows = [Window(video=row, part=part) for row in rows for part in cut_captions(row, WINDOW_S)]
    if not windows:
        raise ValueError(f"{path}: got no dense rows, wanted captions with times")
    random.Random(seed).shuffle(windows)
    return windows


def build(options: argparse.Namespace) -> Mapping[str, int]:
    """Write the questions and the page. Returns the number of questions of each file."""
    config = WriterConfig(
        url=options.url,
        model=options.model,
        key=options.key_file.read_text().strip() if options.key_file else "none",
        concurrency=options.together,
    )
    options.out.mkdir(parents=True, exist_ok=True)
    rows: list[TrainingRow] = []
    numbers: dict[str, int] = {}
    with (writer := InstructionWriter(config)).client:
        builder = StreamEvalBuilder(writer, options.out)
        for num, path in options.take:
            taken = builder.take(int(num), random_windows(path, options.seed))
            numbers[path] = len(taken)
            rows += taken
    write_rows(str(options.out / "questions.jsonl"), rows)
    (options.out / "review.html").write_text(review_page(rows))
    return numbers


def main() -> None:
    """Read the command line and build."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    add = parser.add_argument
    add(
        "--take", nargs=2, action="append", required=True, metavar=("NUM", "FILE"), help="questions of a file"
    )
    add("--url", required=True, help="OpenAI-compatible endpoint, http://host:port/v1")
    add("--model", required=True)
    add("--key-file", type=Path, help="file with the endpoint's key")
    add("--out", type=Path, required=True, help="folder to write to; a stopped run goes on in it")
    add("--seed", type=int, default=1, help="of the random choice of windows")
    add("--together", type=int, default=8, help="requests at a time")
    options = parser.parse_args()
    if not all(num.isdecimal() and int(num) for num, _ in options.take):
        parser.error(f"--take: got {options.take}, wanted a number of questions and a file each")
    try:
        numbers = build(options)
    except (ValueError, OSError) as error:
        parser.exit(1, f"build_stream_eval: {error}\n")
    for path, num in numbers.items():
        print(f"{num} questions of {path}")
    print(f"review them: {options.out / 'review.html'}")


if __name__ == "__main__":
    main()
