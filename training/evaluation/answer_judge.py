"""Who is better: two spoken answers to one question, compared by a language model or by the live world's truth.

Section 4 of the paper: the judge gets the right answer and both candidates', weighs adherence, helpfulness, relevance
and accuracy, says which is better or that both are, and justifies it. Ours is also shown the video's captions, and when
each sentence was spoken.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from string import Template
from typing import Any, Literal, Protocol, get_args

from openai import AsyncOpenAI, OpenAIError

from training.data.bad_row import BadRow, as_mapping, as_number, as_text, object_in
from training.evaluation.spoken_answer import SpokenAnswer
from training.evaluation.streaming_samples import Sample
from training.live_world.judge import Verdict, judge, share_right, spoken_words

PROMPT = Path(__file__).parent / "prompts" / "streaming_judge.md"
ASPECTS = ("adherence", "helpfulness", "relevance", "accuracy")
SHOWN_MISTAKES = 6

Better = Literal["1", "2", "tie"]


class BadJudgement(BadRow):
    """A judge's reply that is no judgement, or none at all. `raw`: what it said."""

    def __init__(self, reason: str, detail: str, raw: str = "") -> None:
        super().__init__(reason, detail)
        self.raw = raw


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """Which answer is better. `scores`: each aspect's, from 1 to 10, of answer 1 and answer 2."""

    better: Better
    justification: str
    scores: Mapping[str, tuple[float, float]]


class Judge(Protocol):
    """Compares two answers."""

    @property
    def what(self) -> dict[str, Any]:
        """What it is, for the record."""
        ...

    async def compare(self, sample: Sample, first: SpokenAnswer, second: SpokenAnswer) -> Judgement:
        """Raises BadJudgement."""
        ...


@dataclass(kw_only=True)
class EndpointJudge:
    """A language model behind an OpenAI-compatible endpoint. Counts the tokens that it costs."""

    client: AsyncOpenAI
    model: str
    prompt: Template = field(default_factory=lambda: Template(PROMPT.read_text()))
    num_prompt_tokens: int = 0
    num_reply_tokens: int = 0

    @property
    def what(self) -> dict[str, Any]:
        """The model, and which prompt."""
        digest = hashlib.blake2b(self.prompt.template.encode(), digest_size=6).hexdigest()
        return {"judge": self.model, "prompt": digest}

    async def compare(self, sample: Sample, first: SpokenAnswer, second: SpokenAnswer) -> Judgement:
        """Ask once. Raises BadJudgement when there is no reply, or a reply that says something else."""
        words = self.prompt.substitute(
            ask_s=f"{sample.ask_s:.1f}",
            captions="\n".join(f"{c.start_s:.1f} to {c.end_s:.1f}: {c.text}" for c in sample.captions)
            or "(not told)",
            instruction=sample.instruction,
            truth=sample.answer,
            first=_heard(first),
            second=_heard(second),
        )
        try:
            reply = await self.client.chat.completions.create(
                model=self.model, messages=[{"role": "user", "content": words}], temperature=0.0
            )
        except OpenAIError as error:
            raise BadJudgement(f"no reply ({type(error).__name__})", str(error)[:500]) from error
        if reply.usage is not None:
            self.num_prompt_tokens += reply.usage.prompt_tokens
            self.num_reply_tokens += reply.usage.completion_tokens
        return parse(reply.choices[0].message.content or "" if reply.choices else "")


def _heard(answer: SpokenAnswer) -> str:
    sentences = [f"[{seen_s:.1f}] {text}" for seen_s, text in answer.timed_sentences()]
    return "\n".join(sentences) or "(nothing was said)"


def parse(raw: str) -> Judgement:
    """Read a judge's reply: one JSON object, perhaps with words or a fence around it. Raises BadJudgement."""
    try:
        reply = object_in(raw)
        scores = [as_mapping(f"answer_{n}", reply.get(f"answer_{n}")) for n in (1, 2)]
        pairs = {a: (_score(scores[0], a), _score(scores[1], a)) for a in ASPECTS}
        better = str(reply.get("better")).lower()
        justification = as_text("justification", reply.get("justification")).strip()
    except BadRow as error:
        raise BadJudgement(error.reason, error.detail, raw) from error
    if better not in get_args(Better):
        raise BadJudgement("no winner", f"better: got {better!r:.80}, wanted '1', '2' or 'tie'", raw)
    if not justification:
        raise BadJudgement("no justification", "justification: got nothing", raw)
    return Judgement(better=better, justification=justification, scores=pairs)  # type: ignore[arg-type]  # checked


def _score(scores: Mapping[str, Any], aspect: str) -> float:
    number = as_number(aspect, scores.get(aspect))
    if not 1 <= number <= 10:
        raise BadRow("score out of range", f"{aspect}: got {number:g}, wanted 1 to 10")
    return number


class TruthJudge:
    """The live world's own truth: the answer with the larger share of right words is better. Scores accuracy only."""

    @property
    def what(self) -> dict[str, Any]:
        """Nothing but the truth."""
        return {"judge": "truth"}

    async def compare(self, sample: Sample, first: SpokenAnswer, second: SpokenAnswer) -> Judgement:
        """Raises BadJudgement when the sample is not of the live world."""
        if sample.world is None:
            raise BadJudgement("no truth", f"{sample.name} is not of the live world: it needs another judge")
        return by_truth(truth_of(sample, first), truth_of(sample, second))


def truth_of(sample: Sample, answer: SpokenAnswer) -> list[Verdict]:
    """Every state-bearing word of an answer, judged (`training/live_world/judge.py`)."""
    assert sample.world is not None
    assert sample.question is not None
    words = spoken_words(answer.tokens)
    return judge(sample.question, sample.world, answer.asked_seen_s, words, answer.ended)


def by_truth(first: list[Verdict], second: list[Verdict]) -> Judgement:
    """Compare shares of right words; who says nothing that can be judged has none right."""
    shares = tuple(share_right(verdicts) if verdicts else 0.0 for verdicts in (first, second))
    better: Better = "tie" if shares[0] == shares[1] else "1" if shares[0] > shares[1] else "2"
    told = " ".join(f"Answer {n}: {_told(verdicts)}" for n, verdicts in enumerate((first, second), start=1))
    scores = {"accuracy": (1 + 9 * shares[0], 1 + 9 * shares[1])}
    return Judgement(better=better, justification=told, scores=scores)


def _told(verdicts: list[Verdict]) -> str:
    wrong = [v for v in verdicts if not v.right]
    mistakes = [
        f"{v.slot} {v.said or '(left out)'} for {v.wanted or '(nothing)'}, {v.lag_s:.1f} s after the question"
        for v in wrong[:SHOWN_MISTAKES]
    ]
    more = [f"{len(wrong) - SHOWN_MISTAKES} more"] if len(wrong) > SHOWN_MISTAKES else []
    right = f"{len(verdicts) - len(wrong)} of {len(verdicts)} words right"
    return f"{right}; wrong: {'; '.join([*mistakes, *more])}." if wrong else f"{right}."
