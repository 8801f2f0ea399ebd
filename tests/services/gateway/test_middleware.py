"""A body that does not come holds nothing."""

from __future__ import annotations

import time
from collections.abc import Iterator

import httpx
import pytest

from tests.services.served_gateway import gateway


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
