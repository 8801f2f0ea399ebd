"""The app as a whole: health, metrics, its own description, headers, wrong routes."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
from openai.types import Model
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from model.config import PROJECT_ROOT
from services.gateway.gateway import make_app
from services.page.routes import MEDIA_TYPES
from services.settings import Settings
from tests.services.adapters.memory_frame_store import MemoryFrameStore
from tests.services.served_gateway import (
    MODEL,
    WORDS,
    Gateway,
    ScriptedDecoder,
    ScriptedPlayer,
    listening,
    wait_for,
)

CONTENT = [
    {"type": "video_url", "video_url": {"url": "camera://front-door"}},
    {"type": "text", "text": "What is happening?"},
]
CLIENTS = sorted((Path(__file__).parent / "clients").glob("*.json"))
REFUSED = {  # what clients ask for and the model cannot do: status, code, and the field at fault
    "embeddings": (404, "unknown_route", None),
    "structured_function_calling": (400, "unsupported_parameter", "tool_choice"),
    "structured_json_mode": (400, "unsupported_parameter", "response_format"),
    "structured_json_schema": (400, "unsupported_parameter", "response_format"),
    "tools_auto": (400, "unsupported_parameter", "tools"),
}
BODY = {"model": MODEL, "messages": [{"role": "user", "content": CONTENT}]}


def test_the_gateway_loads_no_heavy_library() -> None:
    script = "import services.gateway.gateway, sys; print(*sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    loaded = {name.split(".")[0] for name in done.stdout.split()}
    assert not loaded & {"torch", "ray", "redis", "kafka", "transformers", "av"}


def test_health_and_readiness(http: httpx.Client) -> None:
    assert http.get("/healthz").json() == {"status": "ok"}
    assert http.get("/readyz").json() == {"status": "ready"}


def test_readiness_waits_for_the_decoder() -> None:
    ready, num_checks = False, 0

    async def check() -> None:
        nonlocal num_checks
        num_checks += 1
        if not ready:
            raise ConnectionError("no replica")

    store = MemoryFrameStore()
    decoder, player = ScriptedDecoder(store), ScriptedPlayer(store)
    app = make_app(Settings(access="open"), MODEL, store, decoder.decode, player.play_clip, check)
    with listening(app) as url, httpx.Client(base_url=url, verify=False) as http:
        response = http.get("/readyz")
        assert (response.status_code, response.json()["error"]["code"]) == (503, "not_ready")
        for _ in range(20):  # nobody has to show a key here, so the decoder must not pay for each request
            http.get("/readyz")
        assert num_checks <= 3
        ready = True
        wait_for(lambda: http.get("/readyz").status_code == 200)


def test_metrics_count_what_was_asked(http: httpx.Client) -> None:
    def value(name: str) -> float:
        found = re.search(rf"^{re.escape(name)} (.+)$", http.get("/metrics").text, re.MULTILINE)
        return float(found[1]) if found else 0.0

    tokens = value("streamchat_generation_tokens_total")
    assert http.post("/v1/chat/completions", json=BODY).status_code == 200
    assert http.post("/v1/chat/completions", json={**BODY, "n": 2}).status_code == 400
    assert value("streamchat_generation_tokens_total") == tokens + 8
    assert value("streamchat_prompt_tokens_total") >= 1
    assert value("streamchat_requests_total") >= 1
    assert value("streamchat_time_to_first_token_seconds_count") >= 1
    assert value("streamchat_inter_token_latency_seconds_count") >= 7
    assert value("streamchat_e2e_request_latency_seconds_count") >= 1
    assert value('streamchat_request_errors_total{code="unsupported_parameter",status="400"}') >= 1
    assert value("streamchat_requests_running") == 0


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/v2/models", 404, "unknown_route"),
        ("GET", "/v1/chat/completions", 405, "wrong_method"),
        ("GET", "/page/../gateway.py", 404, "unknown_route"),
        ("GET", "/page/%2e%2e%2fgateway.py", 404, "unknown_route"),
        ("GET", "/v1/models/other", 404, "model_not_found"),
    ],
)
def test_wrong_routes_are_told_in_openais_shape(
    http: httpx.Client, method: str, path: str, status: int, code: str
) -> None:
    response = http.request(method, path)
    assert (response.status_code, response.json()["error"]["code"]) == (status, code)


@pytest.mark.parametrize(
    "path", ["/", "/docs", "/v1/cameras", "/nowhere", *(f"/page/{name}" for name in MEDIA_TYPES)]
)
def test_nothing_is_loaded_from_elsewhere(http: httpx.Client, path: str) -> None:
    response = http.get(path)
    policy = response.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "*" not in policy
    assert response.headers["x-content-type-options"] == "nosniff"
    assert not re.search(r"""(src|href|url|import|fetch)\s*[=(]\s*["'`]?(https?:)?//""", response.text)
    assert "<script>" not in response.text
    assert " style=" not in response.text


def test_the_document_describes_the_real_requests_and_errors(http: httpx.Client) -> None:
    document = http.get("/openapi.json").json()
    schemas = document["components"]["schemas"]
    assert "streamchat" in schemas["ChatRequest"]["properties"]
    assert set(schemas["ErrorDetail"]["properties"]) == {"message", "type", "param", "code"}
    assert "ChatCompletionChunk" in schemas
    post = document["paths"]["/v1/chat/completions"]["post"]
    assert {"200", "400", "401", "403", "404", "409", "410", "413", "429", "503"} == set(post["responses"])
    for name in re.findall(r'"#/components/schemas/(\w+)"', json.dumps(document)):
        assert name in schemas
    page = http.get("/docs").text
    for path in document["paths"]:
        assert path in page
    assert "/v1/realtime" in page


@pytest.mark.slow
def test_the_official_javascript_clients_get_their_answers(served: Gateway) -> None:
    installed = PROJECT_ROOT / ".venv" / "javascript"  # by `make javascript`
    script = shutil.copy(Path(__file__).parent / "javascript" / "clients.mjs", installed)
    command = ["node", script, f"{served.url}/v1", MODEL, "front-door"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    text = "".join(WORDS)
    talked = found.pop("realtime")
    assert (talked["text"], talked["status"], talked["errors"]) == (text, "completed", [])
    assert "error" not in talked["kinds"]
    assert found == {
        "whole": {"text": text, "end": "stop"},
        "streamed": {"text": text, "tokens": len(WORDS)},
        "helper": {"text": text},
        "refusal": {"name": "NotFoundError", "code": "model_not_found", "param": "model"},
        "models": [MODEL],
        "aiSdk": {"title": text, "end": "stop", "text": text, "tokens": len(WORDS)},
        "aiSdkOpenAI": {"text": text},
    }


def requests_of_clients() -> list[Any]:
    """What clients send, one parameter for each request."""
    files = [json.loads(path.read_text()) for path in CLIENTS]
    return [
        pytest.param(request, id=f"{each['client']}-{request['use']}")
        for each in files
        for request in each["requests"]
    ]


@pytest.mark.parametrize("request_", requests_of_clients())
def test_what_clients_send_is_answered_in_the_shape_that_they_read(
    http: httpx.Client, request_: dict[str, Any]
) -> None:
    body, use = request_["body"], request_["use"]
    answer = http.request(request_["method"], request_["path"], json=body, headers=request_["headers"])
    kind = answer.headers["content-type"].split(";")[0]
    if use in REFUSED:
        error = answer.json()["error"]
        assert (answer.status_code, error["code"], error["param"]) == REFUSED[use]
        assert (set(error), kind) == ({"message", "type", "param", "code"}, "application/json")
        return
    assert answer.status_code == 200, answer.text
    if use == "models":
        assert [Model.model_validate(row, strict=True).id for row in answer.json()["data"]] == [MODEL]
    elif body.get("stream"):
        assert kind == "text/event-stream"
        check_chunks(answer.text, with_usage="stream_options" in body)
    else:
        completion = ChatCompletion.model_validate_json(answer.text, strict=True)
        assert completion.choices[0].message.content
        assert completion.usage is not None


def check_chunks(text: str, *, with_usage: bool) -> None:
    """Raises AssertionError unless it is a whole stream of OpenAI's chunks."""
    *lines, done = [line.removeprefix("data: ") for line in text.split("\n\n") if line]
    assert done == "[DONE]"
    chunks = [ChatCompletionChunk.model_validate_json(line, strict=True) for line in lines]
    choices = [choice for chunk in chunks for choice in chunk.choices]
    assert choices[0].delta.role == "assistant"
    assert "".join(choice.delta.content or "" for choice in choices) == "".join(WORDS)
    assert [choice.finish_reason for choice in choices if choice.finish_reason] == ["stop"]
    assert [chunk.choices == [] for chunk in chunks if chunk.usage] == ([True] if with_usage else [])
