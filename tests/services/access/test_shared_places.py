"""One key leaves room for the others: of dialogs, and of the bytes of request bodies."""

from __future__ import annotations

import json
import socket
from collections.abc import Generator, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from websockets.sync.client import connect

from services.access.shared_places import SharedPlaces
from services.messages.api_error import ApiError
from services.settings import Settings
from tests.services.access.keyed_gateway import Keys, bearer, body, receive, send
from tests.services.served_gateway import Gateway, gateway, wait_for

MAX_BODY = 1000
HELD = 4 * MAX_BODY  # of which a key may hold half


@pytest.fixture(scope="module")
def served(keys: Keys) -> Iterator[Gateway]:
    settings = Settings(
        keys_file=str(keys.path), max_dialogs=4, max_request_bytes=MAX_BODY, max_held_request_bytes=HELD
    )
    with gateway(settings) as served:
        yield served


@pytest.fixture(autouse=True)
def fresh_script(served: Gateway) -> None:
    served.decoder.start_over()


def check_refusal(response: httpx.Response, code: str, *parts: str) -> None:
    error = response.json()["error"]
    assert (response.status_code, error["code"], error["type"]) == (429, code, "rate_limit_error"), error
    assert int(response.headers["retry-after"]) >= 1
    assert all(part in error["message"] for part in parts), error["message"]


def ask(http: httpx.Client, key: str, **options: Any) -> httpx.Response:
    return http.post("/v1/chat/completions", headers=bearer(key), json=body(**options))


def test_a_key_gets_half_and_a_caller_without_a_key_all() -> None:
    places = SharedPlaces(4, what="things", code="too_many_things")
    places.take("greedy", 2)
    with pytest.raises(ApiError, match="this key has 2 things and got 1 more, wanted at most 2 at once"):
        places.take("greedy")
    places.take(None, 2)
    with pytest.raises(ApiError, match="this gateway has 4 things and got 1 more, wanted at most 4 at once"):
        places.take("other")
    places.give_back("greedy")
    with places.hold("other"), pytest.raises(ApiError):
        places.take(None)
    places.give_back("greedy")
    places.take(None, 2)


def test_one_place_can_be_had_by_a_key() -> None:
    with SharedPlaces(1, what="things", code="too_many_things").hold("only"):
        pass


def test_one_key_leaves_dialogs_to_the_others(served: Gateway, http: httpx.Client, keys: Keys) -> None:
    served.decoder.holds_after = 1
    with ExitStack() as streams:
        for _ in range(2):
            options: dict[str, Any] = {"headers": bearer(keys["ask"]), "json": body(stream=True)}
            streams.enter_context(http.stream("POST", "/v1/chat/completions", **options))
        wait_for(lambda: served.decoder.num_open == 2)
        served.decoder.holds_after = None
        check_refusal(ask(http, keys["ask"]), "too_many_dialogs", "this key has 2 dialogs", "at most 2")
        assert realtime_status(served, keys["ask"]) == ("failed", "too_many_dialogs")
        assert ask(http, keys["admin"]).status_code == 200
        assert realtime_status(served, keys["admin"]) == ("completed", None)
    wait_for(lambda: ask(http, keys["ask"]).status_code == 200)


def realtime_status(served: Gateway, key: str) -> tuple[str, str | None]:
    """How a response of the realtime API ends, and the code of its error."""
    url = f"ws{served.url[4:]}/v1/realtime"
    with connect(url, additional_headers=bearer(key)) as session:
        send(session, {"type": "session.update", "session": {"streamchat": {"camera": "front-door"}}})
        content = [{"type": "input_text", "text": "What is happening?"}]
        item = {"type": "message", "role": "user", "content": content}
        send(session, {"type": "conversation.item.create", "item": item})
        send(session, {"type": "response.create"})
        while (event := receive(session))["type"] != "response.done":
            pass
    details = event["response"]["status_details"] or {}
    return event["response"]["status"], details.get("error", {}).get("code")


@contextmanager
def unfinished_body(served: Gateway, key: str) -> Generator[None]:
    """A request whose body of MAX_BODY bytes is awaited by the gateway."""
    address = urlsplit(served.url)
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: here\r\nAuthorization: Bearer {key}\r\n"
    head += f"Content-Type: application/json\r\nContent-Length: {MAX_BODY}\r\nExpect: 100-continue\r\n\r\n"
    with socket.create_connection((address.hostname, address.port), timeout=10) as connection:
        connection.sendall(head.encode())
        assert connection.recv(100).startswith(b"HTTP/1.1 100 ")
        yield


def test_one_key_leaves_room_for_the_bodies_of_others(
    served: Gateway, http: httpx.Client, keys: Keys
) -> None:
    with unfinished_body(served, keys["ask"]):
        assert ask(http, keys["ask"]).status_code == 200
        with unfinished_body(served, keys["ask"]):
            limit = f"at most {2 * MAX_BODY}"
            check_refusal(ask(http, keys["ask"]), "too_many_request_bytes", "this key has", limit)
            check_refusal(chunked(http, keys["ask"]), "too_many_request_bytes", "this key has", limit)
            assert ask(http, keys["admin"]).status_code == 200
            with unfinished_body(served, keys["admin"]), unfinished_body(served, keys["yard"]):
                check_refusal(ask(http, keys["nothing"]), "too_many_request_bytes", "this gateway has")
    wait_for(lambda: ask(http, keys["ask"]).status_code == 200)


def chunked(http: httpx.Client, key: str) -> httpx.Response:
    headers = {"Content-Type": "application/json", **bearer(key)}
    content = json.dumps(body()).encode()
    return http.post("/v1/chat/completions", content=iter([content]), headers=headers)


def test_a_body_is_held_only_until_its_answer_begins(served: Gateway, http: httpx.Client, keys: Keys) -> None:
    served.decoder.holds_after = 1
    long = body(stream=True, user="x" * (MAX_BODY - 300))
    with ExitStack() as streams:
        for name in ("ask", "ask", "admin", "admin"):
            options: dict[str, Any] = {"headers": bearer(keys[name]), "json": long}
            stream = streams.enter_context(http.stream("POST", "/v1/chat/completions", **options))
            assert stream.status_code == 200
        served.decoder.holds_after = None
        check_refusal(ask(http, keys["ask"]), "too_many_dialogs")


def test_the_local_person_may_use_everything() -> None:
    with gateway(Settings(access="open", max_dialogs=2)) as served, ExitStack() as streams:
        served.decoder.holds_after = 1
        http = streams.enter_context(httpx.Client(base_url=served.url, timeout=10, trust_env=False))
        for _ in range(2):
            options: dict[str, Any] = {"json": body(stream=True)}
            stream = streams.enter_context(http.stream("POST", "/v1/chat/completions", **options))
            assert stream.status_code == 200
