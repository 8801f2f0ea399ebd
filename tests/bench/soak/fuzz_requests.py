"""Random requests over HTTP: from the API's own description (schemathesis), and good questions with changes."""

from __future__ import annotations

import base64
import io
import json
from typing import Any

import httpx
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from PIL import Image

from tests.bench.soak.findings import Fuzzing
from tests.bench.soak.mutate import mutated, to_json

KIND = "request"
TIMEOUT_S = 40.0
STREAMS = "pictures|/stream$"  # they never end
MAX_CHUNKS = 30  # read of a stream before the client leaves
ROUTES = ("/", "/healthz", "/readyz", "/metrics", "/v1/models", "/v1/models/x", "/v1/cameras", "/v1/cameras/soak-0",
          "/v1/cameras/soak-0/frame.jpg", "/v1/cameras/%2e%2e/frame.jpg", "/v1/chat/completions", "/v1/nothing",
          "/openapi.json", "/v1/embeddings", "/metrics%0A", "//v1//models", "/static/../../etc/passwd")  # fmt: skip
METHODS = ("GET", "HEAD", "OPTIONS", "POST", "PUT", "DELETE", "PATCH", "TRACE")
CONTENT_TYPES = (
    "application/json",
    "application/json; charset=utf-16",
    "text/plain",
    "multipart/form-data",
    "",
    "é",
)


def picture_url() -> str:
    """A small picture as a data URL."""
    file = io.BytesIO()
    Image.new("RGB", (64, 48), "red").save(file, "JPEG")
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"


def questions() -> list[dict[str, Any]]:
    """Good requests, small enough that a changed one costs little."""
    camera = {"type": "video_url", "video_url": {"url": "camera://soak-0"}}
    picture = {"type": "image_url", "image_url": {"url": picture_url(), "detail": "low"}}
    text = {"type": "text", "text": "What is happening?"}
    common: dict[str, Any] = {"model": "streamchat-tiny", "max_tokens": 5}
    ours = {"tokens_per_second": 20, "visual_context": "live", "frames": 2}
    sampling = {"temperature": 0.7, "top_p": 0.9, "seed": 1, "stop": ["."], "logit_bias": {"5": 1}, "n": 1}
    tools = [{"type": "function", "function": {"name": "f", "parameters": {}}}]
    return [
        {**common, "messages": [{"role": "user", "content": [camera, text]}], "stream": True, "streamchat": ours},
        {**common, "messages": [{"role": "user", "content": [picture, text]}], **sampling, "logprobs": True},
        {**common, "messages": [{"role": "user", "content": "Title?"}], "tools": tools, "tool_choice": "none"},
        {
            **common,
            "messages": [{"role": r, "content": "Hi."} for r in ("system", "user", "assistant", "user")],
            "stream": True,
            "stream_options": {"include_usage": True},
        },
    ]  # fmt: skip


def fuzz_questions(url: str, fuzzing: Fuzzing) -> None:
    """Send changed questions, one after the other, until the end."""
    good, random = questions(), fuzzing.random
    with httpx.Client(base_url=url, timeout=TIMEOUT_S, trust_env=False) as http:
        while fuzzing.goes_on():
            body = to_json(mutated(random.choice(good), random, num_changes=random.choice((0, 1, 1, 2, 4))))
            if random.random() < 0.1:
                cut = random.randrange(len(body))
                body = body[:cut] + random.randbytes(random.choice((0, 1, 50))) + body[cut + 1 :]
            _ask(http, body, fuzzing)


def _ask(http: httpx.Client, body: bytes, fuzzing: Fuzzing) -> None:
    random = fuzzing.random
    content_type = "application/json" if random.random() < 0.95 else random.choice(CONTENT_TYPES)
    headers = {b"Content-Type": content_type.encode("latin-1")}
    try:
        with http.stream("POST", "/v1/chat/completions", content=body, headers=headers) as reply:
            if reply.headers.get("content-type", "").startswith("text/event-stream"):
                fuzzing.findings.count(f"{KIND} {reply.status_code} stream")
                _read_stream(reply, body, fuzzing, random.randrange(MAX_CHUNKS))
            else:
                fuzzing.findings.check_reply(KIND, body, reply.status_code, "POST", reply.read())
    except httpx.HTTPError as error:
        fuzzing.findings.no_answer(KIND, body, error)


def _read_stream(reply: httpx.Response, body: bytes, fuzzing: Fuzzing, num_chunks: int) -> None:
    """Read some of it, and leave."""
    data = ""
    for number, line in enumerate(reply.iter_lines()):
        if number > num_chunks:
            return
        if line.startswith("data:") and (data := line.removeprefix("data:").strip()) != "[DONE]":
            chunk = json.loads(data)
            if "error" in chunk and not chunk["error"].get("message"):
                fuzzing.findings.break_promise(KIND, "an error in a stream has a message", body, data)
    if data != "[DONE]":
        fuzzing.findings.break_promise(KIND, "a stream ends with [DONE]", body, data)


def fuzz_routes(url: str, fuzzing: Fuzzing) -> None:
    """Any method on any path, with odd headers and bodies."""
    random = fuzzing.random
    with httpx.Client(base_url=url, timeout=TIMEOUT_S, trust_env=False) as http:
        while fuzzing.goes_on():
            method, path = random.choice(METHODS), random.choice(ROUTES)
            headers = {
                random.choice(("Authorization", "Range", "Accept", "If-None-Match", "Origin", "Last-Event-ID", "X")):
                random.choice(("", "Bearer x", "bytes=0-", "*/*", "x" * 5000, "https://evil.example"))
            }  # fmt: skip
            sent = f"{method} {path} {headers}"
            body = random.choice((b"", b"{", random.randbytes(100)))
            try:
                reply = http.request(method, path, headers=headers, content=body)
                fuzzing.findings.check_reply("route", sent, reply.status_code, method, reply.content)
            except httpx.HTTPError as error:
                fuzzing.findings.no_answer("route", sent, error)


def fuzz_from_description(url: str, fuzzing: Fuzzing) -> None:
    """What schemathesis makes of /openapi.json, good and bad, operation after operation."""
    document: Any = schemathesis.openapi.from_url(f"{url}/openapi.json")
    operations = [found.ok() for found in document.exclude(path_regex=STREAMS).get_all_operations()]

    @settings(
        max_examples=10,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=[*HealthCheck],  # pyright: ignore[reportArgumentType]
    )
    def send(case: Any) -> None:
        if not fuzzing.goes_on():
            return
        sent = f"{case.method} {case.formatted_path} {case.body!r}"
        try:
            reply = case.call(timeout=TIMEOUT_S)
        except OSError as error:  # of requests
            fuzzing.findings.count(f"schemathesis {type(error).__name__}")
            fuzzing.findings.break_promise("schemathesis", "every request is answered", sent, repr(error))
            return
        fuzzing.findings.check_reply("schemathesis", sent, reply.status_code, case.method, reply.content)

    while not fuzzing.ended.is_set():
        operation = fuzzing.random.choice(operations)
        seed(fuzzing.random.randrange(2**32))(given(case=operation.as_strategy())(send))()
