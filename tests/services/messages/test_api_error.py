"""Errors in OpenAI's shape."""

from __future__ import annotations

import json

import pytest

from services.messages.api_error import ApiError


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, "invalid_request_error"),
        (404, "invalid_request_error"),
        (409, "conflict_error"),
        (429, "rate_limit_error"),
        (500, "server_error"),
        (503, "server_error"),
    ],
)
def test_the_status_decides_the_type(status: int, kind: str) -> None:
    response = ApiError(status, "some_code", "what", param="where").response()
    assert response.status_code == status
    assert json.loads(bytes(response.body)) == {
        "error": {"message": "what", "type": kind, "param": "where", "code": "some_code"}
    }


def test_who_is_to_come_back_is_told_when() -> None:
    assert ApiError(429, "full", "full").response().headers["retry-after"] == "1"
    assert ApiError(503, "lost", "lost", retry_after_s=2.1).response().headers["retry-after"] == "3"
    assert "retry-after" not in ApiError(400, "bad", "bad").response().headers


def test_a_streams_last_event_holds_the_error() -> None:
    event = ApiError(503, "lost", "two\nlines").event()
    assert event.startswith("data: ")
    assert event.endswith("\n\n")
    assert event.count("\n") == 2
    assert json.loads(event[6:])["error"]["message"] == "two\nlines"
