"""Compare two servers on questions about running videos; a judge says whose answer is better (paper section 4).

    streamchat up --port 8000 --kafka-port 9092                          (in another terminal)
    python training/live_world/write_clips.py --seed 1000003 --num 10 --out held_out
    python training/evaluation/streaming_eval.py --clips held_out --judge truth --out results \\
        --first  name=live,url=http://127.0.0.1:8000,kafka=127.0.0.1:9092,visual_context=live \\
        --second name=frozen,url=http://127.0.0.1:8000,kafka=127.0.0.1:9092,visual_context=frozen

`--samples FILE` takes dense rows of any data set instead of `--clips`. `--judge URL` takes any OpenAI-compatible
endpoint. A server with `sees=frames` is any OpenAI-compatible server that takes pictures. Every pair of answers is
judged in both orders. A stopped evaluation goes on when it is started again, and repeats what failed.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from contextlib import AsyncExitStack
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))
from training.data.bad_row import BadRowCounter
from training.evaluation.answer_judge import EndpointJudge, Judge, TruthJudge
from training.evaluation.eval_questions import EvalQuestion, live_world_questions, read_questions
from training.evaluation.eval_run import EvalRun
from training.evaluation.evaluated_server import EvaluatedServer
from training.evaluation.openai_endpoint import EndpointError, first_model, open_client


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    add = parser.add_argument
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--clips", type=Path, help="held-out clips that write_clips.py wrote")
    source.add_argument(
        "--samples", type=Path, help="dense rows (.jsonl or .parquet); paths of videos are relative to it"
    )
    add("--num", type=int, help="number of clips or questions, the first ones (default: all)")
    first_help = "KEY=VALUE,...: the fields of training/evaluation/evaluated_server.py"
    add("--first", type=EvaluatedServer.parse, required=True, help=first_help)
    add("--second", type=EvaluatedServer.parse, required=True, help="the server that it is compared with")
    add("--judge", required=True, help="`truth` (live world only), or an endpoint's URL")
    add("--judge-model", default="", help="default: the first model that the endpoint lists")
    add("--judge-key-file", type=Path, help="file with the endpoint's key")
    add("--together", type=int, default=4, help="videos, and judgements, at a time")
    add("--max-bad", type=float, default=0.2, help="a larger share of failures ends it with an error")
    add("--out", type=Path, required=True)
    return parser


def questions_from(options: argparse.Namespace) -> list[EvalQuestion]:
    """The questions to ask; raises ValueError or FileNotFoundError."""
    if options.clips:
        return live_world_questions(options.clips, options.num)
    return read_questions(options.samples, BadRowCounter(max_share=options.max_bad))[: options.num]


async def open_judge(options: argparse.Namespace, stack: AsyncExitStack) -> Judge:
    """The judge; `stack` closes its client. EndpointError when no model is named and the endpoint lists none."""
    if options.judge == "truth":
        return TruthJudge()
    key = options.judge_key_file.read_text().strip() if options.judge_key_file else "none"
    client = await stack.enter_async_context(open_client(options.judge, key))
    return EndpointJudge(client=client, model=options.judge_model or await first_model(client))


async def evaluate(options: argparse.Namespace, questions: list[EvalQuestion]) -> None:
    """Ask, judge, write; raises ValueError when too much failed."""
    bad = BadRowCounter(max_share=options.max_bad)
    async with AsyncExitStack() as stack:
        judge = await open_judge(options, stack)
        run = EvalRun(questions, (options.first, options.second), judge, options.out, bad)
        try:
            await run.answer_all(options.together)
            await run.judge_all(options.together)
        finally:
            summary = run.write()
    print((options.out / "table.md").read_text())
    print(json.dumps(summary))
    bad.check_share()


def main() -> None:
    """Read the command line and evaluate."""
    parser = make_parser()
    options = parser.parse_args()
    try:
        questions = questions_from(options)
        if not questions:
            raise ValueError("there is nothing to ask")
        asyncio.run(evaluate(options, questions))
    except (ValueError, OSError, EndpointError) as error:
        parser.exit(1, f"{parser.prog}: {error}\n")


if __name__ == "__main__":
    main()
