"""Judges that say which of two answers to a question is better: a language model, or the live world's truth.

As in section 4 of the paper, the language model gets the right answer and both answers, scores adherence, helpfulness,
relevance and accuracy, says which answer is better or that they are equal, and gives its reasons. Here it also gets the
video's captions and the time at which each sentence was spoken.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from string import Template
from typing import Any, Literal, Protocol, get_args

try:
    from openai import AsyncOpenAI, OpenAIError
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f"{error.name} is not installed; training needs: pip install 'streamchat[train]'"
    ) from error

from training.data.bad_row import BadRow
from training.data.json_fields import as_mapping, as_number, as_text, object_in
from training.evaluation.eval_questions import EvalQuestion
from training.evaluation.timed_answer import TimedAnswer
from training.live_world.word_scores import WordScore, join_tokens, score_words, word_accuracy

PROMPT = Path(__file__).parent / "prompts" / "streaming_judge.md"
ASPECTS = ("adherence", "helpfulness", "relevance", "accuracy")
MAX_SHOWN_MISTAKES = 6

Better = Literal["1", "2", "tie"]


class BadJudgement(BadRow):
    """A judge's reply that is no judgement, or no reply at all. `raw`: the reply."""

    def __init__(self, reason: str, detail: str, raw: str = "") -> None:
        super().__init__(reason, detail)
        self.raw = raw


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """Which answer is better. `scores`: by aspect, from 1 to 10, of answer 1 and answer 2."""

    better: Better
    justification: str
    scores: Mapping[str, tuple[float, float]]


class Judge(Protocol):
    """Compares two answers."""

    @property
    def identity(self) -> dict[str, Any]:
        """What judgements depend on, for the record."""
        ...

    async def compare(self, question: EvalQuestion, first: TimedAnswer, second: TimedAnswer) -> Judgement:
        """Raises BadJudgement."""
        ...


@dataclass(kw_only=True)
class EndpointJudge:
    """A language model behind an OpenAI-compatible endpoint. Counts the tokens that it uses."""

    client: AsyncOpenAI
    model: str
    prompt: Template = field(default_factory=lambda: Template(PROMPT.read_text()))
    num_prompt_tokens: int = 0
    num_reply_tokens: int = 0

    @property
    def identity(self) -> dict[str, Any]:
        """The model and a digest of the prompt."""
        digest = hashlib.blake2b(self.prompt.template.encode(), digest_size=6).hexdigest()
        return {"judge": self.model, "prompt": digest}

    async def compare(self, question: EvalQuestion, first: TimedAnswer, second: TimedAnswer) -> Judgement:
        """Ask once. Raises BadJudgement when there is no reply, or the reply is no judgement."""
        captions = [f"{c.start_s:.1f} to {c.end_s:.1f}: {c.caption}" for c in question.captions]
        prompt = self.prompt.substitute(
            ask_s=f"{question.ask_s:.1f}",
            captions="\n".join(captions) or "(not told)",
            instruction=question.instruction,
            truth=question.answer,
            first=_with_times(first),
            second=_with_times(second),
        )
        try:
            reply = await self.client.chat.completions.create(
                model=self.model, messages=[{"role": "user", "content": prompt}], temperature=0.0
            )
        except OpenAIError as error:
            raise BadJudgement(f"no reply ({type(error).__name__})", str(error)[:500]) from error
        if reply.usage is not None:
            self.num_prompt_tokens += reply.usage.prompt_tokens
            self.num_reply_tokens += reply.usage.completion_tokens
        return parse_judgement(reply.choices[0].message.content or "" if reply.choices else "")


def _with_times(answer: TimedAnswer) -> str:
    sentences = [f"[{seen_s:.1f}] {text}" for seen_s, text in answer.timed_sentences()]
    return "\n".join(sentences) or "(nothing was said)"


def parse_judgement(raw: str) -> Judgement:
    """Read a judge's reply: one JSON object, perhaps with text or a fence around it. Raises BadJudgement."""
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
    """Compares answers by the live world's truth: the higher word accuracy is better. It scores accuracy only."""

    @property
    def identity(self) -> dict[str, Any]:
        """The truth has no settings."""
        return {"judge": "truth"}

    async def compare(self, question: EvalQuestion, first: TimedAnswer, second: TimedAnswer) -> Judgement:
        """Raises BadJudgement when the question is not of the live world."""
        if question.world is None:
            raise BadJudgement(
                "no truth", f"{question.name} is not of the live world: it needs another judge"
            )
        return compare_scores(score_answer(question, first), score_answer(question, second))


def score_answer(question: EvalQuestion, answer: TimedAnswer) -> list[WordScore]:
    """Score every state-bearing word of an answer to a live-world question (`training/live_world/word_scores.py`)."""
    assert question.world is not None
    assert question.world_question is not None
    words = join_tokens(answer.tokens)
    return score_words(question.world_question, question.world, answer.asked_seen_s, words, answer.ended)


def compare_scores(first: list[WordScore], second: list[WordScore]) -> Judgement:
    """Compare word accuracies; an answer without scored words has accuracy 0."""
    shares = tuple(word_accuracy(scores) if scores else 0.0 for scores in (first, second))
    better: Better = "tie" if shares[0] == shares[1] else "1" if shares[0] > shares[1] else "2"
    reasons = [f"Answer {n}: {_describe(scores)}" for n, scores in enumerate((first, second), start=1)]
    aspects = {"accuracy": (1 + 9 * shares[0], 1 + 9 * shares[1])}
    return Judgement(better=better, justification=" ".join(reasons), scores=aspects)


def _describe(scores: list[WordScore]) -> str:
    wrong = [s for s in scores if not s.right]
    mistakes = [
        f"{s.slot} {s.said or '(left out)'} for {s.wanted or '(nothing)'}, {s.lag_s:.1f} s after the question"
        for s in wrong[:MAX_SHOWN_MISTAKES]
    ]
    more = [f"{len(wrong) - MAX_SHOWN_MISTAKES} more"] if len(wrong) > MAX_SHOWN_MISTAKES else []
    right = f"{len(scores) - len(wrong)} of {len(scores)} words right"
    return f"{right}; wrong: {'; '.join([*mistakes, *more])}." if wrong else f"{right}."
