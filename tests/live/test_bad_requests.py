"""Wrong requests: each gets an error that names the mistake, and other requests are not disturbed."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from tests.live.clients.live_stack import MODEL, PATIENCE_S, LiveStack, camera_part, question_about

pytestmark = [pytest.mark.timeout(400), pytest.mark.usefixtures("undisturbed")]

DOOR = question_about(camera_part("door"))
AUDIO = {"type": "input_audio", "input_audio": {"data": "", "format": "wav"}}
URL = "messages[0].content[0].video_url.url"


def post(live: LiveStack, **request: Any) -> httpx.Response:
    body = {"model": MODEL, "messages": DOOR, **request}
    return httpx.post(f"{live.url}/v1/chat/completions", json=body, timeout=PATIENCE_S, trust_env=False)


def check(answer: httpx.Response, status: int, code: str, param: str | None = None) -> None:
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (status, code, param), error
    assert error["message"]


def options(**ours: Any) -> dict[str, Any]:
    return {"streamchat": ours}


@pytest.mark.parametrize(
    ("request_", "status", "code", "param"),
    [
        ({"messages": question_about(camera_part("nowhere"))}, 404, "unknown_camera", URL),
        ({"messages": question_about(camera_part("clip-of-another"))}, 404, "unknown_camera", URL),
        ({"messages": question_about(camera_part("x" * 5000))}, 404, "unknown_camera", URL),
        ({"messages": question_about(camera_part("door"), "  \n")}, 400, "empty_question", "messages"),
        ({"messages": []}, 400, "invalid_option", "messages"),
        (
            {"messages": question_about(camera_part("door"), "why? " * 20_000)},
            400,
            "prompt_too_long",
            "messages",
        ),
        ({"messages": question_about(camera_part("door"), "zq? " * 3_000)}, 400, "prompt_too_long", None),
        ({"messages": question_about(AUDIO)}, 400, "unknown_content_part", "messages[0].content[0]"),
        ({"temperature": "hot"}, 400, "invalid_option", "temperature"),
        ({"max_tokens": "ten"}, 400, "invalid_option", "max_tokens"),
        ({"max_tokens": 10**9}, 400, "invalid_option", "max_tokens"),
        ({"stream": "yes"}, 400, "invalid_option", "stream"),
        ({"n": 5}, 400, "unsupported_parameter", "n"),
        ({"streamchat": [1]}, 400, "invalid_option", "streamchat"),
        (options(visual_context="often"), 400, "invalid_option", "streamchat.visual_context"),
        (options(tokens_per_second=-1), 400, "invalid_option", "streamchat.tokens_per_second"),
        (options(tokens_per_second="5"), 400, "invalid_option", "streamchat.tokens_per_second"),
        (options(frames=0), 400, "invalid_option", "streamchat.frames"),
        (options(speed=3), 400, "invalid_option", "streamchat.speed"),
    ],
)
def test_the_error_names_the_wrong_field(
    live: LiveStack, request_: dict[str, Any], status: int, code: str, param: str | None
) -> None:
    check(post(live, **request_), status, code, param)


def test_malformed_requests_are_refused(live: LiveStack) -> None:
    address = f"{live.url}/v1/chat/completions"
    json = {"Content-Type": "application/json"}
    with httpx.Client(timeout=PATIENCE_S, trust_env=False) as http:
        check(http.post(address, content=b"{", headers=json), 400, "malformed_json")
        check(http.post(address, content=b'"hello"', headers=json), 400, "invalid_request")
        check(http.post(address, content=b"\xff\x00" * 50, headers=json), 400, "malformed_json")
        check(http.post(address, data={"model": MODEL}), 400, "invalid_content_type")
        check(http.get(f"{live.url}/v1/nothing"), 404, "unknown_route")
