"""Pages of other sites may not call, except those in the settings."""

from __future__ import annotations

import httpx
import pytest

from services.access.sign_in import COOKIE
from tests.services.access.keyed_gateway import Keys, answer_to, bearer, body, knock, routes
from tests.services.served_gateway import Gateway


@pytest.mark.parametrize(
    "origin", ["https://evil.example", "null", "http://127.0.0.1:1", "https://desk.example.evil"]
)
def test_pages_of_other_sites_are_turned_away(
    served: Gateway, http: httpx.Client, keys: Keys, origin: str
) -> None:
    headers = {**bearer(keys["admin"]), "Origin": origin}
    for method, path in routes(served):
        if method == "WS":
            assert knock(served, path, headers) == 403
        else:
            answer = answer_to(http, method, path, headers=headers)
            assert answer.status_code == 403, (method, path)
            assert "access-control-allow-origin" not in answer.headers
    preflight = {"Origin": origin, "Access-Control-Request-Method": "POST"}
    assert http.options("/v1/chat/completions", headers=preflight).status_code == 403


def test_a_picture_in_another_sites_page_is_turned_away(http: httpx.Client, keys: Keys) -> None:
    elsewhere = {
        "Cookie": f"{COOKIE}={keys['ask']}",
        "Sec-Fetch-Site": "cross-site",
        "Sec-Fetch-Mode": "no-cors",
    }
    assert http.get("/v1/cameras/front-door/frame.jpg", headers=elsewhere).status_code == 403
    assert http.get("/", headers={**elsewhere, "Sec-Fetch-Mode": "navigate"}).status_code == 200


def test_pages_of_listed_sites_may_call(served: Gateway, http: httpx.Client, keys: Keys) -> None:
    preflight = {
        "Origin": "https://desk.example",
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization,content-type",
    }
    answer = http.options("/v1/chat/completions", headers=preflight)
    assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (
        200,
        "https://desk.example",
    )
    assert "access-control-allow-credentials" not in answer.headers
    headers = {"Origin": "https://desk.example", **bearer(keys["ask"])}
    answer = http.post("/v1/chat/completions", headers=headers, json=body())
    assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (
        200,
        "https://desk.example",
    )
    assert http.get("/v1/models", headers={"Origin": "https://desk.example"}).status_code == 401
    assert knock(served, "/v1/realtime", headers) == 101


OPENAI_NODE = (
    "arch",
    "lang",
    "os",
    "package-version",
    "retry-count",
    "runtime",
    "runtime-version",
    "timeout",
)
SDK_HEADERS = [
    *(
        "authorization",
        "content-type",
        "openai-organization",
        "openai-project",
        "openai-beta",
        "idempotency-key",
    ),
    *(f"x-stainless-{name}" for name in OPENAI_NODE),
    *("last-event-id", "user-agent", "traceparent", "x-a-header-of-next-year"),
]


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/models", "/v1/cameras/front-door/frame.jpg"])
def test_a_listed_page_may_send_the_headers_of_official_clients(http: httpx.Client, path: str) -> None:
    preflight = {
        "Origin": "https://desk.example",
        "Access-Control-Request-Method": "POST" if "chat" in path else "GET",
        "Access-Control-Request-Headers": ", ".join(SDK_HEADERS),
    }
    answer = http.options(path, headers=preflight)
    assert answer.status_code == 200
    allowed = {name.strip().lower() for name in answer.headers["access-control-allow-headers"].split(",")}
    assert set(SDK_HEADERS) <= allowed


def test_our_own_page_may_call(served: Gateway, http: httpx.Client, keys: Keys) -> None:
    assert http.get("/v1/models", headers={"Origin": served.url, **bearer(keys["ask"])}).status_code == 200
    assert knock(served, "/v1/realtime", {"Origin": served.url, **bearer(keys["ask"])}) == 101
