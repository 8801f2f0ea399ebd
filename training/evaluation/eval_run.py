"""A streaming evaluation in a folder: answers, judgements in both orders, failures, and the summary."""

from __future__ import annotations

import asyncio
import json
import statistics
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import asdict
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

import httpx
from openai import AsyncOpenAI

from training.data.bad_row import BadRow, BadRowCounter
from training.data.json_lines_log import JsonLinesLog
from training.evaluation.answer_judge import ASPECTS, BadJudgement, Judge
from training.evaluation.camera_publisher import CameraLost, CameraPublisher
from training.evaluation.eval_questions import EvalQuestion
from training.evaluation.evaluated_server import EvaluatedServer, ask_camera, ask_frames
from training.evaluation.openai_endpoint import EndpointError, first_model
from training.evaluation.reports import rate_table
from training.evaluation.timed_answer import TimedAnswer
from training.evaluation.win_rates import JudgedQuestion, Outcome, combine_orders, win_rates

SWAPPED = (False, True)
ADDRESS_KEYS = ("url", "kafka", "key_file")  # a resumed evaluation may find its servers elsewhere


class EvalRun:
    """Files of the folder: `answers.jsonl`, `judgements.jsonl`, `rejected.jsonl`, `summary.json`, `table.md`."""

    def __init__(
        self,
        questions: Sequence[EvalQuestion],
        servers: Sequence[EvaluatedServer],
        judge: Judge,
        out: Path,
        bad: BadRowCounter,
    ) -> None:
        """Raises ValueError when the folder holds another evaluation, or both servers have the same name."""
        self.questions, self.servers, self.judge, self.bad = questions, servers, judge, bad
        if len({s.name for s in servers}) < 2:
            raise ValueError(f"servers: got the name {servers[0].name!r} twice, wanted two names")
        out.mkdir(parents=True, exist_ok=True)
        self.out = out
        self._claim_folder()
        self.answers = JsonLinesLog(out / "answers.jsonl")
        self.judgements = JsonLinesLog(out / "judgements.jsonl")
        self.rejected = JsonLinesLog(out / "rejected.jsonl")
        self.clients: dict[str, tuple[AsyncOpenAI, str]] = {}  # by server: its client and its model

    def _claim_folder(self) -> None:
        """Keep results of other servers or another judge out of the folder."""
        servers = [{k: v for k, v in asdict(s).items() if k not in ADDRESS_KEYS} for s in self.servers]
        mine = json.loads(json.dumps({"candidates": servers, **self.judge.identity}))
        path = self.out / "evaluation.json"
        if path.is_file() and (there := json.loads(path.read_text())) != mine:
            raise ValueError(
                f"{self.out} holds another evaluation: got {mine}, there is {there}; give another --out"
            )
        path.write_text(json.dumps(mine, indent=1) + "\n")

    # Answers

    async def answer_all(self, concurrency: int) -> None:
        """Ask each server every question that it has not answered; `concurrency` videos at a time."""
        done = {(row["sample"], row["candidate"]) for row in self.answers}
        todo = [(q, s) for q in self.questions for s in self.servers if (q.name, s.name) not in done]
        todo.sort(key=lambda pair: str(pair[0].video))
        groups = [list(group) for _, group in groupby(todo, key=lambda pair: pair[0].video)]
        async with AsyncExitStack() as stack:
            for server in {s.name: s for _, s in todo}.values():
                client = await stack.enter_async_context(server.client())
                self.clients[server.name] = client, server.model or await first_model(client)
            jobs = [partial(self._answer_video, group, number) for number, group in enumerate(groups)]
            await run_concurrently(jobs, concurrency, "videos asked about")

    async def _answer_video(self, todo: Sequence[tuple[EvalQuestion, EvaluatedServer]], number: int) -> None:
        """Ask all questions about one video. Each StreamChat gets the video as one camera."""
        async with AsyncExitStack() as stack:
            cameras: dict[str, CameraPublisher] = {}
            try:
                for s in {s.url: s for _, s in todo if s.sees == "camera"}.values():
                    name = f"eval-{time.time_ns() // 1_000_000}-{number}"
                    publisher = CameraPublisher(s.url, s.kafka, todo[0][0].video, name, s.key)
                    cameras[s.url] = await stack.enter_async_context(publisher)
            except CameraLost as error:
                for question, server in todo:
                    self._reject({"candidate": server.name}, question, BadRow("no camera", str(error)))
                return
            await asyncio.gather(*(self._answer(q, s, cameras.get(s.url)) for q, s in todo))

    async def _answer(
        self, question: EvalQuestion, server: EvaluatedServer, camera: CameraPublisher | None
    ) -> None:
        client, model = self.clients[server.name]
        try:
            if server.sees == "camera":
                assert camera is not None
                answer = await ask_camera(client, model, server, camera, question)
            else:
                answer = await ask_frames(client, model, server, question)
        except (EndpointError, CameraLost, httpx.HTTPError) as error:
            why = BadRow("no answer", str(error) or type(error).__name__)
            self._reject({"candidate": server.name}, question, why)
            return
        self.bad.add_good()
        row = {"sample": question.name, "candidate": server.name, "text": answer.text}
        self.answers.add(row | answer.as_dict())

    # Judgements

    async def judge_all(self, concurrency: int) -> None:
        """Judge every pair of answers in both orders, unless that was done before."""
        done = {(row["sample"], row["swapped"]) for row in self.judgements}
        answers = {(row["sample"], row["candidate"]): TimedAnswer.from_dict(row) for row in self.answers}
        pairs = [
            (q, tuple(answers[q.name, s.name] for s in self.servers))
            for q in self.questions
            if all((q.name, s.name) in answers for s in self.servers)
        ]
        todo = [
            (q, pair, swapped) for q, pair in pairs for swapped in SWAPPED if (q.name, swapped) not in done
        ]
        await run_concurrently([partial(self._judge, *one) for one in todo], concurrency, "judgements")

    async def _judge(self, question: EvalQuestion, pair: Sequence[TimedAnswer], swapped: bool) -> None:
        try:
            judgement = await self.judge.compare(question, *(reversed(pair) if swapped else pair))
        except BadJudgement as error:
            self._reject({"swapped": swapped, "raw": error.raw}, question, error)
            return
        self.bad.add_good()
        names = [s.name for s in (reversed(self.servers) if swapped else self.servers)]
        winner = {"1": names[0], "2": names[1], "tie": "tie"}[judgement.better]
        scores = {aspect: dict(zip(names, pair, strict=True)) for aspect, pair in judgement.scores.items()}
        row = {"sample": question.name, "swapped": swapped, "better": winner, "first_shown": names[0]}
        self.judgements.add(row | {"scores": scores, "justification": judgement.justification})

    def _reject(self, facts: dict[str, Any], question: EvalQuestion, error: BadRow) -> None:
        self.rejected.add({"sample": question.name, **facts, "reason": error.reason, "detail": error.detail})
        self.bad.skip(question.name, error)

    # Results

    def outcomes(self) -> list[JudgedQuestion]:
        """The outcome of every question that was judged in both orders, from the first server's side."""
        first, second = (s.name for s in self.servers)
        sides: dict[str, Outcome] = {first: "win", second: "loss", "tie": "tie"}
        by_order: dict[tuple[str, bool], Outcome] = {
            (row["sample"], row["swapped"]): sides[row["better"]] for row in self.judgements
        }
        return [
            JudgedQuestion(
                group=str(q.video), outcome=combine_orders(by_order[q.name, False], by_order[q.name, True])
            )
            for q in self.questions
            if all((q.name, swapped) in by_order for swapped in SWAPPED)
        ]

    def summary(self) -> dict[str, Any]:
        """Win, tie and loss rates with intervals, mean scores, the effect of the order, and what is missing."""
        judged = self.outcomes()
        decided = [row for row in self.judgements if row["better"] != "tie"]
        num_first = sum(row["better"] == row["first_shown"] for row in decided)
        cost = {k: v for k, v in vars(self.judge).items() if k.startswith("num_")} if vars(self.judge) else {}
        return {
            "first": self.servers[0].name,
            "second": self.servers[1].name,
            **self.judge.identity,
            **(win_rates(judged) if judged else {"questions": 0}),
            "not_judged": len(self.questions) - len(judged),
            "preferred_when_shown_first": round(num_first / len(decided), 4) if decided else None,
            "scores": {a: {s.name: self._mean_score(a, s) for s in self.servers} for a in ASPECTS},
            "rejected": dict(Counter(row["reason"] for row in self.rejected)),
            "judge_cost": cost,
        }

    def _mean_score(self, aspect: str, server: EvaluatedServer) -> float | None:
        scores = [row["scores"][aspect][server.name] for row in self.judgements if aspect in row["scores"]]
        return round(statistics.fmean(scores), 3) if scores else None

    def write(self) -> dict[str, Any]:
        """Write `summary.json` and `table.md`, and return the summary."""
        summary = self.summary()
        (self.out / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")
        (self.out / "table.md").write_text(rate_table([summary]))
        return summary


async def run_concurrently(
    jobs: Sequence[Callable[[], Awaitable[None]]], concurrency: int, what: str
) -> None:
    """Run all jobs, `concurrency` at a time, with progress on stderr."""
    limit = asyncio.Semaphore(concurrency)
    num_done = 0

    async def run(job: Callable[[], Awaitable[None]]) -> None:
        nonlocal num_done
        async with limit:
            await job()
        num_done += 1
        print(f"\r{what}: {num_done}/{len(jobs)}", end="", file=sys.stderr, flush=True)

    await asyncio.gather(*(run(job) for job in jobs))
    if jobs:
        print(file=sys.stderr)
