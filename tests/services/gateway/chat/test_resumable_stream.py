"""A client that lost its connection gets the rest of its answer: no word lost, none told twice, nothing asked twice."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from services.gateway.chat import resumable_stream
from services.settings import Settings
from tests.services.access.keyed_gateway import Keys, bearer, body
from tests.services.served_gateway import MODEL, WORDS, Gateway, gateway, wait_for

TEXT = "".join(WORDS)
QUESTION = body(stream=True, streamchat={"resumable": True}, stream_options={"include_usage": True})


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Keys:
    return Keys(tmp_path_factory.mktemp("keys") / "keys.json")


@pytest.fixture(scope="module")
def served(keys: Keys) -> Iterator[Gateway]:
    with gateway(Settings(keys_file=str(keys.path))) as served:
        yield served


@pytest.fixture(autouse=True)
def fresh_script(served: Gateway) -> None:
    served.decoder.start_over()


class Asker:
    """Asks with one key, and remembers the id of the last event."""

    def __init__(self, http: httpx.Client, key: str) -> None:
        self._http, self._key = http, key
        self.ids: list[str] = []
        self.data: list[Any] = []

    def headers(self, last_event_id: str | None) -> dict[str, str]:
        return bearer(self._key) | ({"Last-Event-ID": last_event_id} if last_event_id else {})

    def read(self, num_events: int | None = None, *, after: str | None = None) -> int:
        """Read so many events, all by default, and drop the connection. Returns the status."""
        with self._http.stream(
            "POST", "/v1/chat/completions", json=QUESTION, headers=self.headers(after)
        ) as response:
            for line in response.iter_lines() if num_events != 0 else ():
                name, _, value = line.partition(": ")
                if name == "id":
                    self.ids.append(value)
                elif name == "data":
                    self.data.append(value if value == "[DONE]" else json.loads(value))
                    if len(self.data) == num_events:
                        break
            return response.status_code

    def refusal(self, after: str, question: Any = QUESTION) -> tuple[int, str]:
        response = self._http.post("/v1/chat/completions", json=question, headers=self.headers(after))
        return response.status_code, response.json()["error"]["code"]

    @property
    def text(self) -> str:
        choices = [event["choices"] for event in self.data if "choices" in event]
        return "".join(choice["delta"].get("content", "") for one in choices for choice in one)


@pytest.fixture
def asker(http: httpx.Client, keys: Keys) -> Asker:
    return Asker(http, keys["ask"])


def test_each_event_has_an_id_if_the_client_wants_to_resume(http: httpx.Client, asker: Asker) -> None:
    asker.read()
    assert asker.data[-1] == "[DONE]"
    assert len(asker.ids) == len(set(asker.ids)) == len(asker.data)
    plain = http.post("/v1/chat/completions", json=body(stream=True), headers=asker.headers(None))
    assert "\nid:" not in plain.text
    whole = http.post("/v1/chat/completions", json={**QUESTION, "stream": False}, headers=asker.headers(None))
    assert whole.json()["error"]["param"] == "streamchat.resumable"


def test_an_answer_goes_on_after_each_lost_connection(served: Gateway, asker: Asker) -> None:
    served.decoder.start_over(pace_s=0.02)
    asker.read(1)
    while asker.data[-1] != "[DONE]":
        asker.read(len(asker.data) + 2, after=asker.ids[-1])
    assert asker.text == TEXT
    assert len(served.decoder.requests) == 1
    assert len(asker.ids) == len(asker.data)
    numbers = [int(event_id.split(".")[1]) for event_id in asker.ids]
    assert all(after == before + 1 for before, after in pairwise(numbers))


def test_a_finished_answer_can_be_read_from_any_event(http: httpx.Client, keys: Keys, asker: Asker) -> None:
    asker.read()
    for index, event_id in enumerate(asker.ids):
        again = Asker(http, keys["ask"])
        assert again.read(after=event_id) == 200
        assert again.data == asker.data[index + 1 :]


def test_only_the_same_key_with_the_same_question_goes_on(
    served: Gateway, http: httpx.Client, keys: Keys, asker: Asker
) -> None:
    asker.read(2)
    last = asker.ids[-1]
    gone = (410, "stream_gone")
    assert Asker(http, keys["admin"]).refusal(last) == gone
    assert asker.refusal(last, body(stream=True, streamchat={"resumable": True})) == gone
    assert asker.refusal(f"{'0' * 32}.1") == gone
    assert asker.refusal(f"{last.split('.')[0]}.999") == gone
    for wrong in ("1", "x.y", "9" * 5000, f"{last}.1"):
        assert asker.refusal(wrong) == (400, "invalid_event_id")
    assert len(served.decoder.requests) == 1


def test_an_answer_that_nobody_reads_ends_and_says_so(
    served: Gateway, asker: Asker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resumable_stream, "GO_ON_S", 0.05)
    served.decoder.holds_after = 3
    asker.read(2)
    wait_for(lambda: served.decoder.num_open == 0)
    asker.read(after=asker.ids[-1])
    assert asker.text == "".join(WORDS[:3])
    assert asker.data[-1]["error"]["code"] == "answer_abandoned"


def test_an_answer_is_forgotten_after_a_while(asker: Asker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resumable_stream, "KEEP_S", 0.0)
    asker.read()
    wait_for(lambda: asker.read(0, after=asker.ids[0]) == 410)


def test_a_new_reader_takes_the_stream_over(
    served: Gateway, http: httpx.Client, keys: Keys, asker: Asker
) -> None:
    served.decoder.holds_after = 3
    with http.stream(
        "POST", "/v1/chat/completions", json=QUESTION, headers=asker.headers(None)
    ) as old:  # the gateway does not know yet that its connection is lost
        lines = old.iter_lines()
        first = next(line for line in lines if line.startswith("id: ")).removeprefix("id: ")
        new = Asker(http, keys["ask"])
        new.read(1, after=first)
        assert json.loads([line for line in lines if line][-1].removeprefix("data: "))["error"]["code"] == (
            "stream_taken_over"
        )
    assert new.text
    assert TEXT.startswith(new.text)


def test_kept_bytes_are_bounded(served: Gateway, asker: Asker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resumable_stream, "MAX_KEPT_BYTES", 1000)
    asker.read()
    assert asker.text == TEXT
    assert asker.refusal(asker.ids[0]) == (410, "stream_gone")
    assert asker.read(after=asker.ids[-2]) == 200
    assert len(served.decoder.requests) == 1


def test_resumable_answers_in_progress_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resumable_stream, "MAX_STREAMS", 4)
    keys = Keys(tmp_path / "keys.json")
    with (
        gateway(Settings(keys_file=str(keys.path))) as served,
        httpx.Client(base_url=served.url, timeout=10, trust_env=False) as http,
        ExitStack() as streams,
    ):
        for _ in range(10):
            Asker(http, keys["ask"]).read()  # those that have ended take no place
        served.decoder.holds_after = 1
        for _ in range(2):
            options: dict[str, Any] = {"json": QUESTION, "headers": bearer(keys["ask"])}
            assert streams.enter_context(http.stream("POST", "/v1/chat/completions", **options)).is_success
        assert Asker(http, keys["ask"]).refusal("") == (429, "too_many_resumable_answers")
        wait_for(lambda: served.decoder.num_open == 2)
        assert Asker(http, keys["admin"]).read(2) == 200


def test_the_openai_client_does_not_mind_ids(served: Gateway, keys: Keys) -> None:
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key=keys["ask"], max_retries=0) as client:
        stream = client.chat.completions.create(
            model=MODEL,
            messages=QUESTION["messages"],
            stream=True,
            extra_body={"streamchat": {"resumable": True}},
        )
        assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == TEXT
