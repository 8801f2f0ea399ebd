"""Two candidates answer questions about running videos, and a judge says who is better (paper section 4).

    streamchat up --port 8000 --kafka-port 9092                          (in another terminal)
    python training/live_world/write_clips.py --seed 1000003 --num 10 --out held_out
    python training/evaluation/streaming_eval.py --clips held_out --judge truth --out results \\
        --first  name=live,url=http://127.0.0.1:8000,kafka=127.0.0.1:9092,visual_context=live \\
        --second name=frozen,url=http://127.0.0.1:8000,kafka=127.0.0.1:9092,visual_context=frozen

`--samples FILE` takes dense rows of any data set instead of `--clips`, and `--judge URL` any OpenAI-compatible
endpoint; a candidate with `sees=frames` is any OpenAI-compatible server that takes pictures. Every pair is judged in
both orders. Stopped or killed, it goes on where it was; what failed is tried again.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from contextlib import AsyncExitStack
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))
from training.data.bad_row import BadRows
from training.evaluation.answer_judge import EndpointJudge, Judge, TruthJudge
from training.evaluation.candidate import Candidate, NoAnswer, endpoint, first_model
from training.evaluation.evaluation import StreamingEval
from training.evaluation.streaming_samples import Sample, live_world_samples, read_samples


def options_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--clips", type=Path, help="held-out clips that live_world.py wrote")
    what.add_argument(
        "--samples", type=Path, help="dense rows (.jsonl or .parquet); videos lie beside the file"
    )
    parser.add_argument("--num", type=int, help="only so many clips or samples, the first ones")
    parser.add_argument(
        "--first",
        type=Candidate.parse,
        required=True,
        help="KEY=VALUE,...: see training/evaluation/candidate.py",
    )
    parser.add_argument(
        "--second", type=Candidate.parse, required=True, help="the one that it is compared with"
    )
    parser.add_argument("--judge", required=True, help="`truth` (live world only), or an endpoint's URL")
    parser.add_argument("--judge-model", default="", help="the first one that the endpoint lists")
    parser.add_argument("--judge-key-file", type=Path, help="file with the endpoint's key")
    parser.add_argument("--together", type=int, default=4, help="videos, and judgements, at a time")
    parser.add_argument(
        "--max-bad", type=float, default=0.2, help="a larger share of failures ends it with an error"
    )
    parser.add_argument("--out", type=Path, required=True)
    return parser


def samples_of(options: argparse.Namespace) -> list[Sample]:
    """What is asked; raises ValueError or FileNotFoundError."""
    if options.clips:
        return live_world_samples(options.clips, options.num)
    return read_samples(options.samples, BadRows(max_share=options.max_bad))[: options.num]


async def judge_of(options: argparse.Namespace, ending: AsyncExitStack) -> Judge:
    """The judge, until `ending`; raises NoAnswer when the endpoint lists no model, and none is named."""
    if options.judge == "truth":
        return TruthJudge()
    key = options.judge_key_file.read_text().strip() if options.judge_key_file else "none"
    client = await ending.enter_async_context(endpoint(options.judge, key))
    return EndpointJudge(client=client, model=options.judge_model or await first_model(client))


async def evaluate(options: argparse.Namespace, samples: list[Sample]) -> None:
    """Ask, judge, write; raises ValueError when too much failed."""
    bad = BadRows(max_share=options.max_bad)
    async with AsyncExitStack() as ending:
        judge = await judge_of(options, ending)
        evaluation = StreamingEval(samples, (options.first, options.second), judge, options.out, bad)
        try:
            await evaluation.answer_all(options.together)
            await evaluation.judge_all(options.together)
        finally:
            summary = evaluation.write()
    print((options.out / "table.md").read_text())
    print(json.dumps(summary))
    bad.finish()


def main() -> None:
    """Read the command line and evaluate."""
    parser = options_parser()
    options = parser.parse_args()
    try:
        samples = samples_of(options)
        if not samples:
            raise ValueError("there is nothing to ask")
        asyncio.run(evaluate(options, samples))
    except (ValueError, OSError, NoAnswer) as error:
        parser.exit(1, f"{parser.prog}: {error}\n")


if __name__ == "__main__":
    main()
