"""HEAD is answered like GET, and a body that does not come holds nothing."""

from __future__ import annotations

import time
from collections.abc import Iterator

import httpx
import pytest

from tests.services.access.keyed_gateway import routes
from tests.services.served_gateway import Gateway, gateway, wait_for


def test_head_is_answered_like_get_without_a_body(served: Gateway, http: httpx.Client) -> None:
    paths = [path for method, path in routes(served) if method == "GET"]
    assert {"/", "/healthz", "/readyz", "/v1/models", "/v1/cameras", "/v1/pictures"} <= set(paths)
    for path in [*paths, "/docs", "/nowhere", "/v1/cameras/nowhere"]:
        with http.stream("GET", path) as got:
            head = http.head(path)
            assert (head.status_code, head.content) == (got.status_code, b""), path
            assert head.headers.get("content-type") == got.headers.get("content-type"), path


def test_head_of_a_stream_leaves_no_viewer(served: Gateway, http: httpx.Client) -> None:
    assert http.head("/v1/cameras/front-door/stream").status_code == 200
    wait_for(lambda: "\nstreamchat_picture_viewers 0.0" in http.get("/metrics").text)


def test_a_wrong_method_is_told_the_right_ones(http: httpx.Client) -> None:
    answer = http.delete("/v1/models")
    assert (answer.status_code, answer.headers["allow"]) == (405, "GET, HEAD")
    assert http.head("/v1/chat/completions").status_code == 405


def test_a_slow_body_holds_no_place_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.gateway.middleware.BODY_TIMEOUT_S", 0.2)

    def slow() -> Iterator[bytes]:
        yield b"{"
        time.sleep(1.0)
        yield b"}"

    headers = {"Content-Type": "application/json"}
    with (
        gateway() as served,
        httpx.Client(base_url=served.url, timeout=10, trust_env=False) as http,
    ):
        answer = http.post("/v1/chat/completions", content=slow(), headers=headers)
    assert (answer.status_code, answer.json()["error"]["code"]) == (408, "request_too_slow")
