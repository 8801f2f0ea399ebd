"""Turn dense captions into instructions and answers with any OpenAI-compatible endpoint (paper section 2.2).

    python training/data/make_rows.py ego4d narration.json --videos /data/ego4d --out captions.parquet
    python training/dense/dense_instructions.py captions.parquet --url http://127.0.0.1:8000/v1 --model NAME --out dense

Writes `answers.jsonl` (usable replies), `rejected.jsonl` (other replies, with the reason), `dropped.jsonl`
(near-duplicates), `rows.parquet` (the remaining rows, to train on) and `report.json`. A stopped run goes on when it is
started again, and repeats requests that got no reply.

As in the paper, a large run stops after its first 5000 requests and writes `examples.jsonl`: replies that differ from
each other. Review them (delete and edit lines), and start the same command again with --reviewed: the other requests
have these as in-context examples.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))
try:
    from openai import OpenAI, OpenAIError
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f"{error.name} is not installed; training needs: pip install 'streamchat[train]'"
    ) from error

from training.data.bad_row import BadRow, BadRowCounter
from training.data.json_lines_log import JsonLinesLog
from training.data.row_files import read_rows, write_rows
from training.data.training_row import TrainingRow, Turn, captions_of
from training.dense.caption_windows import cut_captions
from training.dense.dense_reply import read_examples
from training.dense.in_context_examples import choose_examples, write_examples
from training.dense.instruction_writer import EndpointRefused, InstructionWriter, WriterConfig
from training.dense.near_duplicates import Embedder, EndpointEmbedder, without_duplicates, word_vectors
from training.run.local_ray import connect

WINDOW_S = 40.0  # as the paper's longest samples (3.1)
FIRST_REQUESTS = 5000  # paper, section 2.2


@dataclass(kw_only=True)
class TokenPrice:
    """Price of a million tokens."""

    prompt: float = 0.0
    reply: float = 0.0

    def cost(self, outcomes: Sequence[dict[str, Any]]) -> float:
        """Cost of all tokens of the outcomes."""
        tokens = (sum(o[kind] for o in outcomes) for kind in ("prompt_tokens", "reply_tokens"))
        return sum(num * price for num, price in zip(tokens, (self.prompt, self.reply), strict=True)) / 1e6


class InstructionRun:
    """A run that keeps its state in a folder."""

    def __init__(
        self,
        rows: Sequence[TrainingRow],
        config: WriterConfig,
        out: Path,
        bad: BadRowCounter,
        price: TokenPrice,
        window_s: float = WINDOW_S,
    ) -> None:
        """`rows`: captioned videos. Raises ValueError when the folder holds a run with other settings."""
        cut = [(row, window) for row in rows for window in cut_captions(row, window_s)]
        self.windows = {window.id: window for _, window in cut}
        self.videos = {window.id: row for row, window in cut}  # the whole row that a window is of
        self.config, self.out, self.bad, self.price = config, out, bad, price
        out.mkdir(parents=True, exist_ok=True)
        self._claim("run.json", config)
        self.answers = JsonLinesLog(out / "answers.jsonl")
        self.rejected = JsonLinesLog(out / "rejected.jsonl")
        for outcome in (*self.answers, *self.rejected):  # the share of bad replies includes earlier runs
            if not outcome.get("again"):
                self._count(outcome)

    def _claim(self, name: str, config: WriterConfig) -> None:
        """Keep the settings of the run in a file, or raise ValueError if it holds others."""
        path = self.out / name
        if path.is_file() and (there := json.loads(path.read_text())) != config.identity:
            raise ValueError(
                f"{self.out} holds another run: got {config.identity}, there is {there}; give another --out"
            )
        path.write_text(json.dumps(config.identity, indent=1) + "\n")

    def requests(self, per_window: int, first: int | None = None) -> list[dict[str, Any]]:
        """Of the `first` requests, or of all, those that have no usable outcome yet. They are in random order."""
        names = [f"{window}#{number}" for number in range(per_window) for window in self.windows]
        names.sort(key=lambda name: blake2b(name.encode()).digest())
        done = {o["request"] for o in (*self.answers, *self.rejected) if not o.get("again")}
        return [
            {"request": name, "row": self.windows[_window_id(name)].as_dict()}
            for name in names[:first]
            if name not in done
        ]

    @property
    def examples(self) -> Path:
        """The file of in-context examples to review."""
        return self.out / "examples.jsonl"

    def propose_examples(self, embed: Embedder, similarity: float, num: int) -> int:
        """Write usable replies that differ from each other, at most `num`, for a review. Returns their number."""
        self.bad.check_share()
        usable = self._usable()
        windows = {outcome["request"]: self.windows[_window_id(outcome["request"])] for outcome in usable}
        chosen = choose_examples(usable, windows, embed, similarity, num)
        write_examples(self.examples, chosen)
        return len(chosen)

    def take_examples(self) -> None:
        """Show the reviewed examples to the model from now on. Raises ValueError if others were shown before."""
        self.config = replace(self.config, examples=read_examples(self.examples))
        self._claim("run-reviewed.json", self.config)

    def ask(self, requests: Sequence[dict[str, Any]], workers: int) -> None:
        """Send all requests and record each outcome at once. ValueError for too many bad replies, or a refusal."""
        start_s = time.monotonic()
        for number, outcome in enumerate(ask_with_ray(requests, self.config, workers), 1):
            self._record(outcome)
            self._print_progress(number, len(requests), time.monotonic() - start_s)
        print(file=sys.stderr)

    def _record(self, outcome: dict[str, Any]) -> None:
        (self.answers if "turn" in outcome else self.rejected).add(outcome)
        if outcome.get("refused"):
            raise EndpointRefused(outcome["detail"])
        self._count(outcome)

    def _count(self, outcome: dict[str, Any]) -> None:
        if "turn" in outcome:
            self.bad.add_good()
        else:
            self.bad.skip(outcome["request"], BadRow(outcome["reason"], outcome["detail"]))

    def _print_progress(self, number: int, num: int, elapsed_s: float) -> None:
        left_s = elapsed_s / number * (num - number)
        counts = f"usable {self.bad.num_good}  unusable {self.bad.num_bad}"
        print(f"\rasked {number}/{num}  {counts}  {left_s:.0f} s left", end="", file=sys.stderr, flush=True)

    def _usable(self) -> list[dict[str, Any]]:
        known = (o for o in self.answers if _window_id(o["request"]) in self.windows)
        return sorted(known, key=lambda outcome: outcome["request"])

    def finish(self, embed: Embedder, similarity: float) -> dict[str, Any]:
        """Drop near-duplicates, write the rows and the report. ValueError when too many replies were bad."""
        self.bad.check_share()
        videos: dict[str, list[dict[str, Any]]] = {}
        for outcome in self._usable():
            videos.setdefault(self.videos[_window_id(outcome["request"])].id, []).append(outcome)
        rows: list[TrainingRow] = []
        dropped: list[dict[str, Any]] = []
        for outcomes in videos.values():
            turns = [Turn(**outcome["turn"]) for outcome in outcomes]
            kept = without_duplicates(turns, embed, similarity)
            video = self.videos[_window_id(outcomes[0]["request"])]
            rows += split_dialogs(video, [turn for turn, keep in zip(turns, kept, strict=True) if keep])
            dropped += [outcome for outcome, keep in zip(outcomes, kept, strict=True) if not keep]
        lines = (json.dumps(o, ensure_ascii=False) + "\n" for o in dropped)
        (self.out / "dropped.jsonl").write_text("".join(lines))
        write_rows(str(self.out / "rows.parquet"), rows)
        every = [*self.rejected, *self.answers]
        final = {o["request"]: o for o in every}  # a usable reply replaces an earlier failure
        report = {
            "requests": len(final),
            "kept": sum(len(row.turns) for row in rows),
            "dropped": len(dropped),
            "rejected": dict(Counter(o["reason"] for o in final.values() if "turn" not in o).most_common()),
            "rows": len(rows),
            "prompt_tokens": sum(o["prompt_tokens"] for o in every),
            "reply_tokens": sum(o["reply_tokens"] for o in every),
            "cost": round(self.price.cost(every), 4),
        }
        (self.out / "report.json").write_text(json.dumps(report, indent=1) + "\n")
        return report


def _window_id(request: str) -> str:
    return request.rpartition("#")[0]


def ask_with_ray(
    requests: Sequence[dict[str, Any]], config: WriterConfig, workers: int
) -> Iterator[dict[str, Any]]:
    """Send requests with Ray Data; yields outcomes in the order in which they arrive."""
    import ray.data

    ray.data.DataContext.get_current().enable_progress_bars = False
    items = [{"request": json.dumps(request)} for request in requests]
    if not items:
        return
    blocks = -(-len(items) // config.concurrency)
    asked = ray.data.from_items(items, override_num_blocks=blocks).map_batches(
        InstructionWriter,
        fn_constructor_args=(config,),
        batch_size=config.concurrency,
        compute=ray.data.ActorPoolStrategy(size=workers),
        num_cpus=0.5,  # it waits for the endpoint
    )
    for item in asked.iter_rows():
        yield json.loads(item["outcome"])


def split_dialogs(video: TrainingRow, turns: Sequence[Turn]) -> Iterator[TrainingRow]:
    """Rows of a captioned video's turns, with its captions. Turns that overlap go into different rows."""
    dialogs: list[list[Turn]] = []
    for turn in sorted(turns, key=lambda turn: turn.start_s):
        dialog = next((dialog for dialog in dialogs if dialog[-1].end_s <= turn.start_s), None)
        if dialog is None:
            dialogs.append([turn])
        else:
            dialog.append(turn)
    for dialog in dialogs:
        yield replace(video, turns=tuple(dialog), captions=captions_of(video), id="")


def parse_options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    add = parser.add_argument
    add(
        "rows",
        nargs="+",
        help="dense rows whose answers are captions (training/data/make_rows.py), .parquet or .jsonl",
    )
    add("--url", required=True, help="OpenAI-compatible endpoint, http://host:port/v1")
    add("--model", required=True)
    add("--out", type=Path, required=True, help="folder to write to; a stopped run goes on in it")
    add("--key-file", type=Path, help="file with the endpoint's key")
    add("--prompt", type=Path, help="instead of training/dense/prompts/dense_instruction.md")
    add("--examples", type=Path, help="instead of training/dense/prompts/dense_examples.jsonl")
    add("--num-examples", type=int, default=3, help="examples in each request")
    add("--window-s", type=float, default=WINDOW_S, help="seconds of captions in a request, at most")
    add("--per-window", type=int, default=1, help="requests for each window")
    add(
        "--first",
        type=int,
        default=FIRST_REQUESTS,
        help="requests before the review of in-context examples; 0: no review (default: %(default)s)",
    )
    add("--reviewed", action="store_true", help="go on with the examples that are in OUT/examples.jsonl now")
    add("--max-examples", type=int, default=200, help="in-context examples to propose")
    add("--limit", type=int, help="take the first N rows only")
    add("--temperature", type=float, default=1.0)
    add("--max-tokens", type=int, default=200, help="of each reply")
    add("--timeout-s", type=float, default=60.0, help="time-out of one try")
    add("--tries", type=int, default=8, help="of a request that gets 429, 5xx or no reply; the delays double")
    add("--together", type=int, default=16, help="requests at a time in each worker")
    add("--workers", type=int, default=1, help="number of Ray workers")
    add("--max-bad-share", type=float, default=0.5, help="a larger share of unusable replies stops the run")
    add(
        "--max-bad-rows", type=float, default=0.05, help="a larger share of unusable input rows stops the run"
    )
    add("--embedding-model", help="model for finding near-duplicates (default: TF-IDF of words)")
    add("--embedding-url", help="endpoint of that model (default: --url)")
    add(
        "--similarity",
        type=float,
        default=0.9,
        help="cosine similarity from which instructions are nearly the same",
    )
    add("--price-prompt", type=float, default=0.0, help="price of a million prompt tokens")
    add("--price-reply", type=float, default=0.0, help="price of a million reply tokens")
    add("--ray", help="address of a Ray cluster (default: the job's own, else a private one)")
    return parser.parse_args(arguments)


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Ask, drop near-duplicates, write; returns the report. ValueError and OSError say what is wrong."""
    key = options.key_file.read_text().strip() if options.key_file else "none"
    prompts: dict[str, Any] = {"prompt": options.prompt.read_text()} if options.prompt else {}
    prompts |= {"examples": read_examples(options.examples)} if options.examples else {}
    config = WriterConfig(
        url=options.url,
        model=options.model,
        key=key,
        num_examples=options.num_examples,
        temperature=options.temperature,
        max_tokens=options.max_tokens,
        timeout_s=options.timeout_s,
        tries=options.tries,
        concurrency=options.together,
        **prompts,
    )
    bad_rows = BadRowCounter(max_share=options.max_bad_rows)
    rows = [row for row in read_rows(options.rows, bad_rows) if row.kind == "dense"][: options.limit]
    if not rows:
        raise ValueError(f"{', '.join(options.rows)}: got no dense rows, wanted captions with times")
    replies = BadRowCounter(max_share=options.max_bad_share, min_rows=3 * options.together, unit="replies")
    price = TokenPrice(prompt=options.price_prompt, reply=options.price_reply)
    instructions = InstructionRun(rows, config, options.out, replies, price, options.window_s)
    embed: Embedder = word_vectors
    if options.embedding_model:
        client = OpenAI(base_url=options.embedding_url or options.url, api_key=key, max_retries=options.tries)
        embed = EndpointEmbedder(client=client, model=options.embedding_model)
    report = {"input": {"good": bad_rows.num_good, "bad": dict(bad_rows.reasons)}}
    if 0 < options.first < len(instructions.windows) * options.per_window:
        if not instructions.examples.is_file():
            _ask(instructions, instructions.requests(options.per_window, options.first), options)
            num = instructions.propose_examples(embed, options.similarity, options.max_examples)
            return report | {"review": str(instructions.examples), "examples": num}
        if not options.reviewed:
            raise ValueError(
                f"{instructions.examples} waits for a review: delete and edit lines, then go on with --reviewed"
            )
        instructions.take_examples()
    _ask(instructions, instructions.requests(options.per_window), options)
    return report | instructions.finish(embed, options.similarity)


def _ask(instructions: InstructionRun, requests: list[dict[str, Any]], options: argparse.Namespace) -> None:
    if requests:
        connect(options.ray, needs_dashboard=False)
        instructions.ask(requests, options.workers)


def main() -> None:
    """Run, and end with a line of JSON."""
    try:
        report = run(parse_options())
    except (ValueError, OSError, OpenAIError) as error:
        sys.exit(f"dense_instructions: {error}")
    print(json.dumps(report))


if __name__ == "__main__":
    main()
