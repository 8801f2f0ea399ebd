"""A streaming evaluation in a folder: answers, judgements in both orders, what was refused, and what came of it."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import AsyncExitStack
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

import httpx
from openai import AsyncOpenAI

from training.data.bad_row import BadRow, BadRows
from training.data.ledger import Ledger
from training.evaluation.answer_judge import ASPECTS, BadJudgement, Judge
from training.evaluation.camera_publisher import Broadcast, CameraLost
from training.evaluation.candidate import Candidate, NoAnswer, ask_camera, ask_frames, first_model
from training.evaluation.spoken_answer import SpokenAnswer
from training.evaluation.streaming_samples import Sample
from training.evaluation.win_rates import Judged, Outcome, both_orders, rate_table, win_rates

SWAPPED = (False, True)
SERVER_KEYS = ("url", "kafka", "key_file")  # where a candidate is may change between two tries


class StreamingEval:
    """An evaluation in a folder: `answers.jsonl`, `judgements.jsonl`, `rejected.jsonl`, `summary.json`, `table.md`."""

    def __init__(
        self,
        samples: Sequence[Sample],
        candidates: Sequence[Candidate],
        judge: Judge,
        out: Path,
        bad: BadRows,
    ) -> None:
        """Raises ValueError when the folder holds another evaluation, or names are not different."""
        self.samples, self.candidates, self.judge, self.bad = samples, candidates, judge, bad
        if len({c.name for c in candidates}) < 2:
            raise ValueError(f"candidates: got the name {candidates[0].name!r} twice, wanted two names")
        out.mkdir(parents=True, exist_ok=True)
        self.out = out
        self._claim()
        self.answers = Ledger(out / "answers.jsonl")
        self.judgements = Ledger(out / "judgements.jsonl")
        self.rejected = Ledger(out / "rejected.jsonl")
        self.servers: dict[str, tuple[AsyncOpenAI, str]] = {}  # by candidate: its client, and its model

    def _claim(self) -> None:
        """A folder is one evaluation's: answers of other candidates and judgements by other rules never mix."""
        asked = [{k: v for k, v in vars_of(c).items() if k not in SERVER_KEYS} for c in self.candidates]
        mine = json.loads(json.dumps({"candidates": asked, **self.judge.what}))
        path = self.out / "evaluation.json"
        if path.is_file() and (there := json.loads(path.read_text())) != mine:
            raise ValueError(
                f"{self.out} holds another evaluation: got {mine}, there is {there}; give another --out"
            )
        path.write_text(json.dumps(mine, indent=1) + "\n")

    # Answers

    async def answer_all(self, together: int) -> None:
        """Every question to every candidate that has not answered it; `together` videos at a time."""
        done = {(row["sample"], row["candidate"]) for row in self.answers}
        todo = [(s, c) for s in self.samples for c in self.candidates if (s.name, c.name) not in done]
        todo.sort(key=lambda pair: str(pair[0].video))
        groups = [list(group) for _, group in groupby(todo, key=lambda pair: pair[0].video)]
        async with AsyncExitStack() as ending:
            for c in {c.name: c for _, c in todo}.values():
                client = await ending.enter_async_context(c.client())
                self.servers[c.name] = client, c.model or await first_model(client)
            videos = [partial(self._video, group, number) for number, group in enumerate(groups)]
            await in_turn(videos, together, "videos asked about")

    async def _video(self, todo: Sequence[tuple[Sample, Candidate]], number: int) -> None:
        """All that is to be asked about one video, which each StreamChat sees as one camera."""
        async with AsyncExitStack() as ending:
            cameras: dict[str, Broadcast] = {}
            try:
                for c in {c.url: c for _, c in todo if c.sees == "camera"}.values():
                    name = f"eval-{time.time_ns() // 1_000_000}-{number}"
                    camera = Broadcast(c.url, c.kafka, todo[0][0].video, name, c.key)
                    cameras[c.url] = await ending.enter_async_context(camera)
            except CameraLost as error:
                for sample, candidate in todo:
                    self._reject({"candidate": candidate.name}, sample, BadRow("no camera", str(error)))
                return
            await asyncio.gather(*(self._ask(s, c, cameras.get(c.url)) for s, c in todo))

    async def _ask(self, sample: Sample, candidate: Candidate, camera: Broadcast | None) -> None:
        client, model = self.servers[candidate.name]
        try:
            if candidate.sees == "camera":
                assert camera is not None
                answer = await ask_camera(client, model, candidate, camera, sample)
            else:
                answer = await ask_frames(client, model, candidate, sample)
        except (NoAnswer, CameraLost, httpx.HTTPError) as error:
            self._reject(
                {"candidate": candidate.name}, sample, BadRow("no answer", str(error) or type(error).__name__)
            )
            return
        self.bad.good()
        row = {"sample": sample.name, "candidate": candidate.name, "text": answer.text}
        self.answers.add(row | answer.as_dict())

    # Judgements

    async def judge_all(self, together: int) -> None:
        """Every pair of answers in both orders, unless it has been judged."""
        done = {(row["sample"], row["swapped"]) for row in self.judgements}
        answers = {(row["sample"], row["candidate"]): SpokenAnswer.from_dict(row) for row in self.answers}
        pairs = [
            (sample, tuple(answers[sample.name, c.name] for c in self.candidates))
            for sample in self.samples
            if all((sample.name, c.name) in answers for c in self.candidates)
        ]
        todo = [
            (s, pair, swapped) for s, pair in pairs for swapped in SWAPPED if (s.name, swapped) not in done
        ]
        await in_turn([partial(self._judge, *one) for one in todo], together, "judgements")

    async def _judge(self, sample: Sample, pair: Sequence[SpokenAnswer], swapped: bool) -> None:
        try:
            judgement = await self.judge.compare(sample, *(reversed(pair) if swapped else pair))
        except BadJudgement as error:
            self._reject({"swapped": swapped, "raw": error.raw}, sample, error)
            return
        self.bad.good()
        names = [c.name for c in (reversed(self.candidates) if swapped else self.candidates)]
        won = {"1": names[0], "2": names[1], "tie": "tie"}[judgement.better]
        scores = {aspect: dict(zip(names, pair, strict=True)) for aspect, pair in judgement.scores.items()}
        row = {"sample": sample.name, "swapped": swapped, "better": won, "first_shown": names[0]}
        self.judgements.add(row | {"scores": scores, "justification": judgement.justification})

    def _reject(self, facts: dict[str, Any], sample: Sample, error: BadRow) -> None:
        self.rejected.add({"sample": sample.name, **facts, "reason": error.reason, "detail": error.detail})
        self.bad.skip(sample.name, error)

    # Results

    def outcomes(self) -> list[Judged]:
        """Of every question that was judged in both orders, from the first candidate's side."""
        sides: dict[str, Outcome] = {
            self.candidates[0].name: "win",
            self.candidates[1].name: "loss",
            "tie": "tie",
        }
        rulings: dict[tuple[str, bool], Outcome] = {
            (row["sample"], row["swapped"]): sides[row["better"]] for row in self.judgements
        }
        return [
            Judged(group=str(s.video), outcome=both_orders(rulings[s.name, False], rulings[s.name, True]))
            for s in self.samples
            if all((s.name, swapped) in rulings for swapped in SWAPPED)
        ]

    def summary(self) -> dict[str, Any]:
        """Win, tie and loss with their intervals, mean scores, how much the order counted, and what is missing."""
        judged = self.outcomes()
        decided = [row for row in self.judgements if row["better"] != "tie"]
        shown_first = sum(row["better"] == row["first_shown"] for row in decided)
        scores = {
            aspect: {
                c.name: mean(
                    row["scores"][aspect][c.name] for row in self.judgements if aspect in row["scores"]
                )
                for c in self.candidates
            }
            for aspect in ASPECTS
        }
        cost = {k: v for k, v in vars(self.judge).items() if k.startswith("num_")} if vars(self.judge) else {}
        return {
            "first": self.candidates[0].name,
            "second": self.candidates[1].name,
            **self.judge.what,
            **(win_rates(judged) if judged else {"questions": 0}),
            "not_judged": len(self.samples) - len(judged),
            "preferred_when_shown_first": round(shown_first / len(decided), 4) if decided else None,
            "scores": scores,
            "rejected": dict(Counter(row["reason"] for row in self.rejected)),
            "judge_cost": cost,
        }

    def write(self) -> dict[str, Any]:
        """Write `summary.json` and `table.md`."""
        summary = self.summary()
        (self.out / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")
        (self.out / "table.md").write_text(rate_table([summary]))
        return summary


def mean(values: Iterable[float]) -> float | None:
    """None for no values."""
    known = list(values)
    return round(sum(known) / len(known), 3) if known else None


def vars_of(candidate: Candidate) -> dict[str, Any]:
    """A candidate's values."""
    return {name: getattr(candidate, name) for name in candidate.__slots__}


async def in_turn(work: Sequence[Callable[[], Awaitable[None]]], together: int, what: str) -> None:
    """Do all of it, so many at a time, with progress on stderr."""
    places = asyncio.Semaphore(together)
    done = 0

    async def one(part: Callable[[], Awaitable[None]]) -> None:
        nonlocal done
        async with places:
            await part()
        done += 1
        print(f"\r{what}: {done}/{len(work)}", end="", file=sys.stderr, flush=True)

    await asyncio.gather(*(one(part) for part in work))
    if work:
        print(file=sys.stderr)
