"""Turn dense captions into (interval, instruction, answer) with any OpenAI-compatible endpoint (paper section 2.2).

    python training/data/make_rows.py ego4d narration.json --videos /data/ego4d --out captions.parquet
    python training/dense/dense_instructions.py captions.parquet --url http://127.0.0.1:8000/v1 --model NAME --out dense

Writes `answers.jsonl` (what can be used), `rejected.jsonl` (what cannot, with the reason), `dropped.jsonl` (nearly the
same as another), `rows.parquet` (what remains, to train on) and `report.json`. A run that was stopped goes on where it
stopped; requests that got no reply are asked again.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))
from openai import OpenAI, OpenAIError

from training.data.bad_row import BadRow, BadRows
from training.data.ledger import Ledger
from training.data.row import Row, Turn, read_rows, write_rows
from training.dense.dense_reply import read_examples
from training.dense.instruction_writer import Brief, InstructionWriter, Refused
from training.dense.near_duplicates import Embedder, EndpointEmbedder, clusters, first_of_each, word_vectors
from training.run.local_ray import connect


@dataclass(kw_only=True)
class Price:
    """Money for a million tokens."""

    prompt: float = 0.0
    reply: float = 0.0

    def of(self, outcomes: Sequence[dict[str, Any]]) -> float:
        """What outcomes cost."""
        tokens = (sum(o[kind] for o in outcomes) for kind in ("prompt_tokens", "reply_tokens"))
        return sum(num * price for num, price in zip(tokens, (self.prompt, self.reply), strict=True)) / 1e6


class DenseInstructions:
    """A run in a folder."""

    def __init__(self, rows: Sequence[Row], brief: Brief, out: Path, bad: BadRows, price: Price) -> None:
        """Raises ValueError when the folder holds a run with another model, prompt or examples."""
        self.rows = {row.id: row for row in rows}
        self.brief, self.out, self.bad, self.price = brief, out, bad, price
        out.mkdir(parents=True, exist_ok=True)
        claim = out / "run.json"
        if claim.is_file() and (there := json.loads(claim.read_text())) != brief.what:
            raise ValueError(
                f"{out} holds another run: got {brief.what}, there is {there}; give another --out"
            )
        claim.write_text(json.dumps(brief.what, indent=1) + "\n")
        self.answers = Ledger(out / "answers.jsonl")
        self.rejected = Ledger(out / "rejected.jsonl")
        for outcome in (*self.answers, *self.rejected):  # what was so before counts on
            if not outcome.get("again"):
                self._count(outcome)

    def requests(self, per_window: int) -> list[dict[str, Any]]:
        """What is still to be asked."""
        done = {o["request"] for o in (*self.answers, *self.rejected) if not o.get("again")}
        names = [(f"{row.id}#{number}", row) for number in range(per_window) for row in self.rows.values()]
        return [{"request": name, "row": row.as_dict()} for name, row in names if name not in done]

    def ask(self, requests: Sequence[dict[str, Any]], workers: int) -> None:
        """Ask for all, and keep each outcome as it comes. ValueError when too many are bad, or all would be."""
        begun_s = time.monotonic()
        for number, outcome in enumerate(outcomes(requests, self.brief, workers), 1):
            self._keep(outcome)
            self._show(number, len(requests), time.monotonic() - begun_s)
        print(file=sys.stderr)

    def _keep(self, outcome: dict[str, Any]) -> None:
        (self.answers if "turn" in outcome else self.rejected).add(outcome)
        if outcome.get("refused"):
            raise Refused(outcome["detail"])
        self._count(outcome)

    def _count(self, outcome: dict[str, Any]) -> None:
        if "turn" in outcome:
            self.bad.good()
        else:
            self.bad.skip(outcome["request"], BadRow(outcome["reason"], outcome["detail"]))

    def _show(self, number: int, num: int, passed_s: float) -> None:
        left_s = passed_s / number * (num - number)
        told = (
            f"asked {number}/{num}  usable {self.bad.num_good}  not {self.bad.num_bad}  {left_s:.0f} s left"
        )
        print(f"\r{told}", end="", file=sys.stderr, flush=True)

    def finish(self, embed: Embedder, similarity: float, per_cluster: int) -> dict[str, Any]:
        """Leave out near-duplicates, write the rows, and report. ValueError when too many replies were bad."""
        self.bad.finish()
        usable = sorted((o for o in self.answers if _row_id(o) in self.rows), key=lambda o: o["request"])
        labels = clusters([o["turn"]["instruction"] for o in usable], embed, similarity)
        kept = first_of_each(labels, per_cluster)
        dropped = [o | {"cluster": c} for o, c, keep in zip(usable, labels, kept, strict=True) if not keep]
        lines = (json.dumps(o, ensure_ascii=False) + "\n" for o in dropped)
        (self.out / "dropped.jsonl").write_text("".join(lines))
        turns: dict[str, list[Turn]] = {}
        for outcome, keep in zip(usable, kept, strict=True):
            if keep:
                turns.setdefault(_row_id(outcome), []).append(Turn(**outcome["turn"]))
        rows = [row for name, some in turns.items() for row in dialogs(self.rows[name], some)]
        write_rows(str(self.out / "rows.parquet"), rows)
        final = {
            o["request"]: o for o in (*self.rejected, *self.answers)
        }  # what got a reply later counts as that
        everything = [*self.answers, *self.rejected]
        report = {
            "requests": len(final),
            "kept": sum(kept),
            "dropped": len(dropped),
            "rejected": dict(Counter(o["reason"] for o in final.values() if "turn" not in o).most_common()),
            "rows": len(rows),
            "prompt_tokens": sum(o["prompt_tokens"] for o in everything),
            "reply_tokens": sum(o["reply_tokens"] for o in everything),
            "cost": round(self.price.of(everything), 4),
        }
        (self.out / "report.json").write_text(json.dumps(report, indent=1) + "\n")
        return report


def _row_id(outcome: dict[str, Any]) -> str:
    return outcome["request"].rpartition("#")[0]


def outcomes(requests: Sequence[dict[str, Any]], brief: Brief, workers: int) -> Iterator[dict[str, Any]]:
    """Outcomes on Ray Data, as they come."""
    import ray.data

    ray.data.DataContext.get_current().enable_progress_bars = False
    items = [{"request": json.dumps(request)} for request in requests]
    if not items:
        return
    blocks = -(-len(items) // brief.together)
    asked = ray.data.from_items(items, override_num_blocks=blocks).map_batches(
        InstructionWriter,
        fn_constructor_args=(brief,),
        batch_size=brief.together,
        compute=ray.data.ActorPoolStrategy(size=workers),
        num_cpus=0.5,  # it waits for the endpoint
    )
    for item in asked.iter_rows():
        yield json.loads(item["outcome"])


def dialogs(row: Row, turns: Sequence[Turn]) -> Iterator[Row]:
    """Rows of a window's turns: one after another where they do not overlap, otherwise apart."""
    talks: list[list[Turn]] = []
    for turn in sorted(turns, key=lambda turn: turn.start_s):
        talk = next((talk for talk in talks if talk[-1].end_s <= turn.start_s), None)
        if talk is None:
            talks.append([turn])
        else:
            talk.append(turn)
    for talk in talks:
        yield Row(
            video=row.video, time_range=row.time_range, turns=tuple(talk), kind="dense", source=row.source
        )


def options_of(words: Sequence[str] | None = None) -> argparse.Namespace:
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
    add("--out", type=Path, required=True, help="folder to write; a run that was stopped goes on in it")
    add("--key-file", type=Path, help="file with the endpoint's key")
    add("--prompt", type=Path, help="instead of training/dense/prompts/dense_instruction.md")
    add("--examples", type=Path, help="instead of training/dense/prompts/dense_examples.jsonl")
    add("--num-examples", type=int, default=3, help="examples shown with each request")
    add("--per-window", type=int, default=1, help="requests for each row")
    add("--limit", type=int, help="take the first N rows only")
    add("--temperature", type=float, default=1.0)
    add("--max-tokens", type=int, default=200, help="of a reply")
    add("--timeout-s", type=float, default=60.0, help="of one try")
    add("--tries", type=int, default=8, help="of a request that gets 429, 5xx or no reply; the waits double")
    add("--together", type=int, default=16, help="requests at once, of each worker")
    add("--workers", type=int, default=1, help="Ray workers that ask")
    add("--max-bad-share", type=float, default=0.5, help="more unusable replies than this stop the run")
    add("--max-bad-rows", type=float, default=0.05, help="more unusable input rows than this stop the run")
    add("--embedding-model", help="of the endpoint, for near-duplicates (default: counts of words)")
    add("--embedding-url", help="if that is another endpoint")
    add("--similarity", type=float, default=0.9, help="instructions at least that similar are one")
    add("--per-cluster", type=int, default=1, help="of near-duplicates, how many to keep")
    add("--price-prompt", type=float, default=0.0, help="money for a million prompt tokens")
    add("--price-reply", type=float, default=0.0, help="money for a million reply tokens")
    add("--ray", help="address of a Ray cluster (default: the job's own, else a private one)")
    return parser.parse_args(words)


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Ask, leave out, write; returns the report. ValueError and OSError say what is wrong."""
    key = options.key_file.read_text().strip() if options.key_file else "none"
    told: dict[str, Any] = {"num_examples": options.num_examples, "temperature": options.temperature}
    told["max_tokens"] = options.max_tokens
    told |= {"timeout_s": options.timeout_s, "tries": options.tries, "together": options.together}
    told |= {"prompt": options.prompt.read_text()} if options.prompt else {}
    told |= {"examples": read_examples(options.examples)} if options.examples else {}
    brief = Brief(url=options.url, model=options.model, key=key, **told)
    bad_rows = BadRows(max_share=options.max_bad_rows)
    rows = [row for row in read_rows(options.rows, bad_rows) if row.kind == "dense"][: options.limit]
    if not rows:
        raise ValueError(f"{', '.join(options.rows)}: got no dense rows, wanted captions with times")
    replies = BadRows(max_share=options.max_bad_share, enough=3 * options.together, what="replies")
    price = Price(prompt=options.price_prompt, reply=options.price_reply)
    made = DenseInstructions(rows, brief, options.out, replies, price)
    requests = made.requests(options.per_window)
    if requests:
        connect(options.ray, trains=False)
        made.ask(requests, options.workers)
    embed: Embedder = word_vectors
    if options.embedding_model:
        client = OpenAI(base_url=options.embedding_url or options.url, api_key=key, max_retries=options.tries)
        embed = EndpointEmbedder(client=client, model=options.embedding_model)
    report = made.finish(embed, options.similarity, options.per_cluster)
    return {"input": {"good": bad_rows.num_good, "bad": dict(bad_rows.reasons)}} | report


def main() -> None:
    """Run, and end with a line of JSON."""
    try:
        report = run(options_of())
    except (ValueError, OSError, OpenAIError) as error:
        sys.exit(f"dense_instructions: {error}")
    print(json.dumps(report))


if __name__ == "__main__":
    main()
