"""Requests to real endpoints: tokens, failures, and outcomes."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

import pytest
from fastapi import FastAPI, Request, Response

from tests.services.served_gateway import listening
from tests.training.small_llm import small_llm_app
from training.data.training_row import TrainingRow, Turn
from training.dense.instruction_writer import InstructionWriter, WriterConfig, make_messages

TURNS = tuple(
    Turn(start_s=start_s, end_s=start_s + 4, instruction="Tell me what happens.", answer=text)
    for start_s, text in ((0.0, "A red dog is at top-left."), (5.0, "A white car appears at middle."))
)
ROW = TrainingRow(video="a.mp4", time_range=(0.0, 20.0), turns=TURNS, kind="dense", source="live_world")
GOOD = json.dumps({"start_s": 5.0, "instruction": "What comes now?", "answer": "A white car appears."})


def completion(text: Any, **more: Any) -> Response:
    choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}
    usage = {"prompt_tokens": 300, "completion_tokens": 20, "total_tokens": 320}
    head = {"id": "1", "object": "chat.completion", "created": 1, "model": "m"}
    return Response(
        json.dumps(head | {"choices": [choice], "usage": usage} | more), media_type="application/json"
    )


def status(code: int) -> Response:
    return Response('{"error": {"message": "no"}}', code, {"Retry-After": "0"}, "application/json")


@contextmanager
def endpoint(reply: Callable[[int], Response]) -> Generator[str]:
    """URL of a server that answers the n-th request with `reply(n)`."""
    app, bodies = FastAPI(), list[Any]()

    @app.post("/v1/chat/completions")
    async def complete(request: Request) -> Response:  # pyright: ignore[reportUnusedFunction]
        bodies.append(await request.json())
        number = len(bodies)
        return reply(number)

    with listening(app) as url:
        yield f"{url}/v1"


def write(url: str, tries: int = 2, timeout_s: float = 30.0) -> dict[str, Any]:
    writer = InstructionWriter(WriterConfig(url=url, model="m", tries=tries, timeout_s=timeout_s))
    with writer.client:
        return writer.write("r#0", ROW.as_dict())


def test_a_usable_reply_and_what_it_cost() -> None:
    with endpoint(lambda number: completion(GOOD)) as url:
        outcome = write(url)
    assert outcome["turn"]["answer"] == "A white car appears."
    assert (outcome["turn"]["start_s"], outcome["turn"]["end_s"]) == (5.0, 9.0)
    assert (outcome["prompt_tokens"], outcome["reply_tokens"]) == (300, 20)


def test_an_unusable_reply_is_kept_with_its_reason_and_its_cost() -> None:
    with endpoint(lambda number: completion("I would rather not.")) as url:
        outcome = write(url)
    assert (outcome["reason"], outcome["reply"]) == ("no JSON", "I would rather not.")
    assert outcome["prompt_tokens"] == 300
    assert "again" not in outcome


@pytest.mark.parametrize("code", [429, 500, 503, 408])
def test_a_busy_endpoint_is_asked_again(code: int) -> None:
    with endpoint(lambda number: status(code) if number < 3 else completion(GOOD)) as url:
        assert "turn" in write(url, tries=3)


def late(number: int) -> Response:
    time.sleep(1.0)
    return completion(GOOD)


FAILING: list[tuple[Callable[[int], Response], str]] = [
    (lambda number: status(429), "endpoint: 429"),
    (lambda number: status(500), "endpoint: 500"),
    (lambda number: status(400), "endpoint: 400"),
    (late, "endpoint: time-out"),
    (lambda number: Response("<html>Welcome</html>", media_type="text/html"), "endpoint: invalid reply"),
    (lambda number: Response("{", media_type="application/json"), "endpoint: invalid reply"),
    (lambda number: Response("[]", media_type="application/json"), "endpoint: invalid reply"),
    (lambda number: Response("{}", media_type="application/json"), "endpoint: invalid reply"),
    (lambda number: completion(None), "endpoint: invalid reply"),
    (lambda number: completion(GOOD, choices=[]), "endpoint: invalid reply"),
    (lambda number: completion(GOOD, choices="none"), "endpoint: invalid reply"),
]


@pytest.mark.parametrize(("reply", "reason"), FAILING, ids=[f"{i}-{f[1]}" for i, f in enumerate(FAILING)])
def test_a_request_without_a_reply_is_named_and_may_be_repeated(
    reply: Callable[[int], Response], reason: str
) -> None:
    with endpoint(reply) as url:
        outcome = write(url, timeout_s=0.3 if reply is late else 30.0)
    assert (outcome["reason"], outcome["again"]) == (reason, True)
    assert "refused" not in outcome


def test_nobody_listens() -> None:
    with endpoint(late) as url:
        pass
    assert write(url)["reason"] == "endpoint: no connection"


@pytest.mark.parametrize("code", [401, 403, 404])
def test_what_will_never_work_ends_the_run(code: int) -> None:
    with endpoint(lambda number: status(code)) as url:
        outcome = write(url)
    assert outcome["refused"]
    assert str(code) in outcome["detail"]


def test_a_batch_is_asked_together() -> None:
    with endpoint(lambda number: completion(GOOD)) as url:
        writer = InstructionWriter(WriterConfig(url=url, model="m"))
        requests = [json.dumps({"request": f"r#{n}", "row": ROW.as_dict()}) for n in range(20)]
        with writer.client:
            outcomes = [json.loads(text) for text in writer({"request": requests})["outcome"]]
    assert [outcome["request"] for outcome in outcomes] == [f"r#{n}" for n in range(20)]
    assert all("turn" in outcome for outcome in outcomes)


def test_examples_differ_between_requests_and_not_between_runs() -> None:
    config = WriterConfig(url="", model="m")
    one, again, other = (make_messages(config, ROW, name) for name in ("r#0", "r#0", "r#1"))
    assert one == again != other
    assert [message["role"] for message in one] == ["system", *["user", "assistant"] * 3, "user"]
    assert one[-1]["content"] == (
        "0.0 to 4.0: A red dog is at top-left.\n5.0 to 9.0: A white car appears at middle."
    )


def test_the_key_is_not_shown() -> None:
    assert "sesame" not in repr(WriterConfig(url="", model="m", key="sesame"))


@pytest.mark.timeout(600)
@pytest.mark.filterwarnings("ignore")  # of transformers' GGUF reader
def test_a_real_language_model() -> None:
    """SmolLM2 with 135 million parameters writes bad instructions, but its replies are read and counted."""
    with listening(small_llm_app()) as url:
        writer = InstructionWriter(
            WriterConfig(url=f"{url}/v1", model="smollm2", timeout_s=500, max_tokens=24)
        )
        requests = [json.dumps({"request": f"r#{n}", "row": ROW.as_dict()}) for n in range(2)]
        with writer.client:
            outcomes = [json.loads(text) for text in writer({"request": requests})["outcome"]]
    assert all(outcome["reply"] and outcome["prompt_tokens"] > 300 for outcome in outcomes)
    assert all(0 < outcome["reply_tokens"] <= 24 for outcome in outcomes)
    assert all(("turn" in outcome) != ("reason" in outcome) for outcome in outcomes)
    assert len({outcome["reply"] for outcome in outcomes}) > 1
