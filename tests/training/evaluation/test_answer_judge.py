"""Judges: the strict check of a language model's reply, and the live world's truth."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from tests.training.sample_worlds import STORY, WHERE, late_answer
from tests.training.scripted_endpoint import MODEL, ChatRequest, scripted
from training.data.training_row import Caption
from training.evaluation.answer_judge import ASPECTS, BadJudgement, EndpointJudge, TruthJudge, parse_judgement
from training.evaluation.eval_questions import EvalQuestion
from training.evaluation.openai_endpoint import open_client
from training.evaluation.timed_answer import TimedAnswer

QUESTION = EvalQuestion(
    name="5-0#0",
    video=Path("a.mp4"),
    ask_s=3.0,
    instruction="Follow the dog.",
    answer="At top-left. At top-right.",
    captions=(Caption(start_s=5.0, end_s=7.0, caption="The dog moves to top-right."),),
    world=STORY,
    world_question=WHERE,
)


def reply(**changes: Any) -> dict[str, Any]:
    scores = dict.fromkeys(ASPECTS, 5)
    return {
        "answer_1": scores,
        "answer_2": scores | {"accuracy": 7},
        "better": "2",
        "justification": "Because.",
    } | changes


@pytest.mark.parametrize("around", ["{}", "```json\n{}\n```", "I think so.\n{}\nThat is all."])
def test_a_reply_is_found_in_its_wrapping(around: str) -> None:
    judgement = parse_judgement(around.replace("{}", json.dumps(reply())))
    assert (judgement.better, judgement.justification) == ("2", "Because.")
    assert judgement.scores == dict.fromkeys(ASPECTS, (5.0, 5.0)) | {"accuracy": (5.0, 7.0)}


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        ("", "no JSON"),
        ("Answer 2 is better.", "no JSON"),
        ('{"better": "2"', "no JSON"),
        ('{"better": {"better": ' + "[" * 100_000 + "}", "no JSON"),
        (json.dumps(reply(better="3")), "no winner"),
        (json.dumps(reply(better=None)), "no winner"),
        (json.dumps(reply(justification=" ")), "no justification"),
        (json.dumps(reply(justification=3)), "wrong type"),
        (json.dumps(reply(answer_1=None)), "wrong type"),
        (json.dumps(reply(answer_1={"accuracy": 5})), "wrong type"),
        (json.dumps(reply(answer_2=dict.fromkeys(ASPECTS, 11))), "score out of range"),
        (json.dumps(reply(answer_2=dict.fromkeys(ASPECTS, True))), "wrong type"),
        (json.dumps(reply(answer_2=dict.fromkeys(ASPECTS, float("nan")))), "score out of range"),
    ],
)
def test_what_is_no_judgement_is_refused_with_its_reason(raw: str, reason: str) -> None:
    with pytest.raises(BadJudgement) as refused:
        parse_judgement(raw)
    assert refused.value.reason == reason
    assert refused.value.raw == raw


async def test_the_endpoint_is_shown_everything_and_its_tokens_are_counted() -> None:
    with scripted(lambda request: json.dumps(reply())) as judge:
        async with open_client(judge.url) as client:
            mine = EndpointJudge(client=client, model=MODEL)
            judgement = await mine.compare(QUESTION, late_answer(0.0), late_answer(2.0))
    assert judgement.better == "2"
    assert (mine.num_prompt_tokens, mine.num_reply_tokens) == (100, 10)
    told = judge.requests[0].text
    for words in (
        "Follow the dog.",
        "5.0 to 7.0: The dog moves to top-right.",
        "At top-left. At top-right.",
        "second 3.0",
    ):
        assert words in told
    first, second = told.split("Answer 1:")[1].split("Answer 2:")
    assert "[5.0] At top-right." in first  # each sentence with the second at which it was begun
    assert "[5.0] At top-left." in second
    assert "$" not in told
    assert mine.identity["judge"] == MODEL


@pytest.mark.parametrize("status", [429, 500])
async def test_a_busy_judge_is_asked_again(status: int) -> None:
    def busy(request: ChatRequest) -> str | int:
        return status if len(judge.requests) < 3 else json.dumps(reply())

    with scripted(busy) as judge:
        async with open_client(judge.url) as client:
            judgement = await EndpointJudge(client=client, model=MODEL).compare(
                QUESTION, late_answer(0.0), late_answer(2.0)
            )
    assert judgement.better == "2"
    assert len(judge.requests) == 3


async def test_a_judge_that_refuses_or_is_not_there_has_given_no_judgement() -> None:
    with scripted(lambda request: 403) as judge:
        async with open_client(judge.url) as client:
            with pytest.raises(BadJudgement, match="no reply"):
                await EndpointJudge(client=client, model=MODEL).compare(
                    QUESTION, late_answer(0.0), late_answer(2.0)
                )
    async with open_client(judge.url).with_options(max_retries=0) as client:
        with pytest.raises(BadJudgement, match="no reply"):
            await EndpointJudge(client=client, model=MODEL).compare(
                QUESTION, late_answer(0.0), late_answer(2.0)
            )


def judge_by_truth(first: TimedAnswer, second: TimedAnswer) -> Any:
    return asyncio.run(TruthJudge().compare(QUESTION, first, second))


def test_the_truth_prefers_who_looks_again() -> None:
    silent = TimedAnswer(tokens=(), asked_seen_s=3.0, ended=True)
    assert judge_by_truth(late_answer(0.0), late_answer(2.0)).better == "1"
    assert judge_by_truth(late_answer(2.0), late_answer(0.0)).better == "2"
    assert judge_by_truth(late_answer(0.0), late_answer(0.0)).better == "tie"
    assert judge_by_truth(late_answer(2.0), silent).better == "1"
    assert judge_by_truth(silent, silent).better == "tie"


def test_the_truth_gives_its_reasons() -> None:
    judgement = judge_by_truth(late_answer(0.0), late_answer(2.0))
    first, second = judgement.justification.split("Answer 2: ")
    assert first.startswith("Answer 1: 12 of 12 words right.")
    assert "place top-left for top-right, 2.0 s after the question" in second
    assert judgement.scores["accuracy"][0] == 10.0
    assert 1.0 <= judgement.scores["accuracy"][1] < 10.0


async def test_the_truth_knows_the_live_world_only() -> None:
    other = EvalQuestion(name="x", video=Path("a.mp4"), ask_s=0.0, instruction="?", answer="!")
    with pytest.raises(BadJudgement, match="x is not of the live world"):
        await TruthJudge().compare(other, late_answer(0.0), late_answer(0.0))
