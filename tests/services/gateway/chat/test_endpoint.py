"""The chat API, asked by the unmodified openai client and by hand."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest

from services.messages.dialog import NO_CAMERA, DialogFailed
from services.settings import Settings
from tests.services.served_gateway import MODEL, WORDS, Gateway, gateway, wait_for

TEXT = "".join(WORDS)
HTTP = httpx.Client(timeout=10, verify=False)  # making a client is slow; nothing here is encrypted
CAMERA = {"type": "video_url", "video_url": {"url": "camera://front-door"}}


@pytest.fixture(scope="module")
def served() -> Iterator[Gateway]:
    with HTTP, gateway(Settings(access="open", max_request_bytes=2_000_000)) as served:
        yield served


@pytest.fixture(autouse=True)
def fresh_script(served: Gateway) -> None:
    served.decoder.start_over()


def messages(text: str = "What is happening?", part: Any = CAMERA) -> list[Any]:
    return [{"role": "user", "content": [part, {"type": "text", "text": text}]}]


def ask(served: Gateway, **options: Any) -> httpx.Response:
    body = {"model": MODEL, "messages": messages(), **options}
    return HTTP.post(f"{served.url}/v1/chat/completions", json=body)


def events(response: httpx.Response) -> list[Any]:
    lines = [line.removeprefix("data: ") for line in response.text.split("\n\n") if line.startswith("data: ")]
    return [line if line == "[DONE]" else json.loads(line) for line in lines]


def check_error(response: httpx.Response, status: int, code: str, param: str | None) -> None:
    error = response.json()["error"]
    assert (response.status_code, error["code"], error["param"]) == (status, code, param), error
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"]
    assert error["type"]


def test_the_openai_client_gets_the_answer_at_once(served: Gateway) -> None:
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0) as client:
        answer = client.chat.completions.create(model=MODEL, messages=messages(), max_tokens=100)
        assert [model.id for model in client.models.list()] == [MODEL]
        assert client.models.retrieve(MODEL).id == MODEL
    assert answer.choices[0].message.content == TEXT
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    assert answer.usage.model_dump(exclude_none=True) == {
        "prompt_tokens": 7,
        "completion_tokens": len(WORDS),
        "total_tokens": 7 + len(WORDS),
        "prompt_tokens_details": {"cached_tokens": 0},
    }
    facts: Any = answer.model_extra and answer.model_extra["streamchat"]
    assert "".join(token["text"] for token in facts["tokens"]) == TEXT
    newest = served.store.newest_picture("front-door")
    assert newest is not None
    assert {token["frame_id"] for token in facts["tokens"]} == {newest.frame_id}
    assert 0 <= facts["frame_age_p50_ms"] <= facts["frame_age_p95_ms"]


def test_the_openai_client_gets_the_answer_word_by_word(served: Gateway) -> None:
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0) as client:
        stream = client.chat.completions.create(
            model=MODEL,
            messages=messages(),
            stream=True,
            stream_options={"include_usage": True},
            extra_body={"streamchat": {"max_frame_age_ms": 0.001, "frames": 2, "tokens_per_second": 900}},
        )
        chunks = list(stream)
    assert chunks[0].choices[0].delta.role == "assistant"
    words = [chunk for chunk in chunks if chunk.choices and chunk.choices[0].delta.content]
    assert "".join(chunk.choices[0].delta.content or "" for chunk in words) == TEXT
    for chunk in words:
        facts: Any = chunk.model_extra and chunk.model_extra["streamchat"]
        assert "".join(token["text"] for token in facts["tokens"]) == chunk.choices[0].delta.content
        assert all(token["stale"] for token in facts["tokens"])
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.total_tokens == 7 + len(WORDS)
    request = served.decoder.requests[0]
    assert (request.num_frames, request.tokens_per_second, request.max_frame_age_ms) == (2, 900, 0.001)
    assert request.visual_context == "live"


async def test_the_asynchronous_openai_client_works(served: Gateway) -> None:
    async with openai.AsyncOpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0) as client:
        whole = await client.chat.completions.create(model=MODEL, messages=messages())
        assert whole.choices[0].message.content == TEXT
        stream = await client.chat.completions.create(model=MODEL, messages=messages(), stream=True)
        words = [chunk.choices[0].delta.content or "" async for chunk in stream]
    assert "".join(words) == TEXT


def test_a_stream_has_openais_shape(served: Gateway) -> None:
    response = ask(served, stream=True)
    assert response.headers["content-type"].startswith("text/event-stream")
    *chunks, done = events(response)
    assert done == "[DONE]"
    assert len({(chunk["id"], chunk["created"], chunk["model"]) for chunk in chunks}) == 1
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert chunks[0]["choices"] == [
        {"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}
    ]
    assert chunks[-1]["choices"] == [{"index": 0, "delta": {}, "finish_reason": "stop"}]
    assert "streamchat" not in chunks[0]
    assert "usage" not in chunks[0]


def test_the_end_by_length_is_told(served: Gateway) -> None:
    answer = ask(served, max_completion_tokens=3).json()
    assert answer["choices"][0]["finish_reason"] == "length"
    assert answer["choices"][0]["message"]["content"] == "".join(WORDS[:3])
    assert answer["streamchat"]["limit"] == "tokens"
    *_, last, done = events(ask(served, max_completion_tokens=3, stream=True))
    assert (last["choices"][0]["finish_reason"], last["streamchat"]) == (
        "length",
        {"tokens": [], "limit": "tokens"},
    )
    assert done == "[DONE]"
    assert ask(served).json()["streamchat"]["limit"] is None


def test_the_end_by_time_is_told(served: Gateway) -> None:
    served.decoder.start_over(pace_s=0.06)
    options = {"streamchat": {"time_limit_s": 0.1}}
    answer = ask(served, **options).json()
    assert (answer["choices"][0]["finish_reason"], answer["streamchat"]["limit"]) == ("length", "time")
    assert 1 <= answer["usage"]["completion_tokens"] < len(WORDS)
    last = events(ask(served, stream=True, **options))[-2]
    assert (last["choices"][0]["finish_reason"], last["streamchat"]["limit"]) == ("length", "time")
    assert {request.time_limit_s for request in served.decoder.requests} == {0.1}


def test_the_conversation_and_the_options_reach_the_decoder(served: Gateway) -> None:
    history: list[Any] = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [{"type": "video_url", "video_url": {"url": "camera://other"}}]},
        {"role": "assistant", "content": [{"type": "text", "text": "Nothing."}]},
        {
            "role": "user",
            "content": [CAMERA, {"type": "text", "text": "And"}, {"type": "text", "text": "now?"}],
        },
    ]
    options = {
        "temperature": 0.5,
        "top_p": 0.9,
        "seed": 3,
        "stop": ["x", "y"],
        "n": 1,
        "user": "u",
        "tools": None,
    }
    assert (
        ask(served, messages=history, **options, streamchat={"visual_context": "frozen"}).status_code == 200
    )
    request = served.decoder.requests[0]
    turns = [(message.role, message.text) for message in request.messages]
    assert turns == [("system", "Be brief."), ("user", ""), ("assistant", "Nothing."), ("user", "And\nnow?")]
    assert (request.camera, request.visual_context, request.stop) == ("front-door", "frozen", ("x", "y"))
    assert (request.temperature, request.top_p, request.seed) == (0.5, 0.9, 3)


def test_top_p_0_takes_the_likeliest_token(served: Gateway) -> None:
    assert ask(served, top_p=0, temperature=1).status_code == 200
    assert (served.decoder.requests[0].top_p, served.decoder.requests[0].temperature) == (1.0, 0.0)


@pytest.mark.parametrize("stream", [False, True])
def test_fields_that_nobody_knows_are_ignored_and_named(served: Gateway, stream: bool) -> None:
    response = ask(served, stream=stream, surprise=1, **{"sm\nörgås: b": 2, "x" * 500: 3, "nothing": None})
    assert response.status_code == 200
    names = ["surprise", "sm%0A%C3%B6rg%C3%A5s%3A%20b", "x" * 64]
    assert response.headers["x-ignored-parameters"] == ", ".join(names)
    assert "x-ignored-parameters" not in ask(served, user="u").headers
    many = ask(served, **{f"field{number}": 1 for number in range(1000)})
    assert len(many.headers["x-ignored-parameters"].split(", ")) == 16


@pytest.mark.parametrize("stream", [False, True])
def test_a_question_without_a_picture_is_answered_from_its_text(served: Gateway, stream: bool) -> None:
    words = [{"role": "user", "content": "Name this conversation: A bus drives past."}]
    response = ask(served, messages=words, stream=stream)
    assert response.status_code == 200, response.text
    assert served.decoder.requests[0].camera == NO_CAMERA
    if stream:
        facts = [e["streamchat"] for e in events(response)[:-1] if "streamchat" in e]
        tokens = [token for fact in facts for token in fact["tokens"]]
    else:
        ours = response.json()["streamchat"]
        assert ours["frame_age_p50_ms"] is None
        tokens = ours["tokens"]
    assert [token["text"] for token in tokens] == list(WORDS)
    assert {(t["frame_id"], t["captured_s"], t["frame_age_ms"], t["stale"]) for t in tokens} == {
        (None, None, None, False)
    }


PARTS = "messages[0].content"
BAD: list[tuple[dict[str, Any], int, str, str | None]] = [
    ({"model": "other"}, 404, "model_not_found", "model"),
    ({"model": 5}, 400, "invalid_option", "model"),
    ({"messages": []}, 400, "invalid_option", "messages"),
    ({"messages": messages(part={"type": "video_url", "video_url": {"url": "camera://nowhere"}})}, 404,
     "unknown_camera", f"{PARTS}[0].video_url.url"),
    ({"messages": messages(part={"type": "video_url", "video_url": {"url": "camera://clip-1"}})}, 404,
     "unknown_camera", f"{PARTS}[0].video_url.url"),
    ({"messages": messages(part={"type": "video_url", "video_url": {"url": "camera://"}})}, 404,
     "unknown_camera", f"{PARTS}[0].video_url.url"),
    ({"messages": messages("  ")}, 400, "empty_question", "messages"),
    ({"messages": [*messages(), {"role": "assistant", "content": "So?"}]}, 400, "empty_question", "messages"),
    ({"messages": messages("long " * 10_000)}, 400, "prompt_too_long", "messages"),
    ({"messages": messages(part={"type": "input_audio", "input_audio": {}})}, 400, "unknown_content_part",
     f"{PARTS}[0]"),
    ({"messages": messages(part={"type": "text"})}, 400, "invalid_option", f"{PARTS}[0].text"),
    ({"messages": messages(part=5)}, 400, "invalid_option", f"{PARTS}[0]"),
    ({"messages": [{"role": "robot", "content": "x"}]}, 400, "invalid_option", "messages[0].role"),
    ({"messages": [{"role": "user", "content": 5}]}, 400, "invalid_option", PARTS),
    ({"messages": [{"role": "user", "content": [CAMERA, CAMERA, {"type": "text", "text": "?"}]}]}, 400,
     "several_pictures", f"{PARTS}[1].video_url.url"),
    ({"messages": [{"role": "system", "content": [CAMERA]}, *messages()]}, 400, "misplaced_picture",
     f"{PARTS}[0].video_url.url"),
    ({"messages": messages(part={"type": "video_url", "video_url": {"url": "http://example.com/a.mp4"}})}, 400,
     "url_not_fetched", f"{PARTS}[0].video_url.url"),
    ({"messages": messages(part={"type": "video_url", "video_url": {"url": "file:///etc/passwd"}})}, 400,
     "invalid_url", f"{PARTS}[0].video_url.url"),
    ({"messages": messages(part={"type": "image_url", "image_url": {"url": "camera://front-door"}})}, 400,
     "invalid_url", f"{PARTS}[0].image_url.url"),
    ({"messages": messages(part={"type": "video_url", "video_url": {"url": "data:video/mp4;base64,%%%"}})}, 400,
     "invalid_data_uri", f"{PARTS}[0].video_url.url"),
    ({"messages": messages(part={"type": "video_url", "video_url": {"url": "data:video/mp4;base64,"}})}, 400,
     "invalid_data_uri", f"{PARTS}[0].video_url.url"),
    ({"messages": messages(part={"type": "image_url", "image_url": {"url": "data:video/mp4;base64,AAAA"}})}, 400,
     "invalid_data_uri", f"{PARTS}[0].image_url.url"),
    ({"messages": messages(part={"type": "video_url", "video_url": {
        "url": "data:video/mp4;base64," + base64.b64encode(b"broken").decode()}})}, 400, "clip_without_video",
     f"{PARTS}[0].video_url.url"),
    ({"temperature": "hot"}, 400, "invalid_option", "temperature"),
    ({"temperature": 3}, 400, "invalid_option", "temperature"),
    ({"temperature": True}, 400, "invalid_option", "temperature"),
    ({"temperature": 1e-39}, 400, "invalid_option", "temperature"),
    ({"max_tokens": 0}, 400, "invalid_option", "max_tokens"),
    ({"max_tokens": 10**6}, 400, "invalid_option", "max_tokens"),
    ({"max_tokens": 5, "max_completion_tokens": 6}, 400, "invalid_option", "max_tokens"),
    ({"stop": ["a", "b", "c", "d", "e"]}, 400, "invalid_option", "stop"),
    ({"stop": [""]}, 400, "invalid_option", "stop[0]"),
    ({"n": 2}, 400, "unsupported_parameter", "n"),
    ({"n": True}, 400, "unsupported_parameter", "n"),
    ({"tools": [{"type": "function"}]}, 400, "unsupported_parameter", "tools"),
    ({"top_logprobs": 3}, 400, "invalid_option", "top_logprobs"),
    ({"logit_bias": {"word": 1}}, 400, "invalid_option", "logit_bias"),
    ({"logit_bias": {"9" * 5000: 1}}, 400, "invalid_option", "logit_bias"),
    ({"logit_bias": {str(n): 1 for n in range(1025)}}, 400, "invalid_option", "logit_bias"),
    ({"logit_bias": {"1": 101}}, 400, "invalid_option", "logit_bias.1"),
    ({"response_format": {"type": "json_object"}}, 400, "unsupported_parameter", "response_format"),
    ({"streamchat": {"surprise": 1}}, 400, "invalid_option", "streamchat.surprise"),
    ({"streamchat": {"frames": "many"}}, 400, "invalid_option", "streamchat.frames"),
    ({"streamchat": {"tokens_per_second": 0}}, 400, "invalid_option", "streamchat.tokens_per_second"),
    ({"streamchat": {"tokens_per_second": 1e-11}}, 400, "invalid_option", "streamchat.tokens_per_second"),
    ({"streamchat": {"tokens_per_second": 1001}}, 400, "invalid_option", "streamchat.tokens_per_second"),
    ({"streamchat": {"time_limit_s": 0.01}}, 400, "invalid_option", "streamchat.time_limit_s"),
    ({"streamchat": {"time_limit_s": 601}}, 400, "invalid_option", "streamchat.time_limit_s"),
    ({"streamchat": {"visual_context": "warm"}}, 400, "invalid_option", "streamchat.visual_context"),
    ({"streamchat": "live"}, 400, "invalid_option", "streamchat"),
]  # fmt: skip


@pytest.mark.parametrize(("options", "status", "code", "param"), BAD)
def test_a_bad_request_is_told_what_is_wrong_and_where(
    served: Gateway, options: dict[str, Any], status: int, code: str, param: str | None
) -> None:
    check_error(ask(served, **options), status, code, param)
    check_error(ask(served, **{**options, "stream": True}), status, code, param)
    assert served.decoder.requests == []


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b'{"seed": NaN}', b"\xff\xfe", b'"\\ud800"', b"[" * 100_000]
)
def test_what_is_not_a_json_object_is_refused(served: Gateway, body: bytes) -> None:
    headers = {"content-type": "application/json"}
    response = HTTP.post(f"{served.url}/v1/chat/completions", content=body, headers=headers)
    check_error(response, 400, "invalid_request" if body == b"[]" else "malformed_json", None)


def test_json_must_call_itself_json(served: Gateway) -> None:
    response = HTTP.post(f"{served.url}/v1/chat/completions", content=b"{}")
    check_error(response, 400, "invalid_content_type", None)


def test_a_body_that_is_too_large_is_refused(served: Gateway) -> None:
    check_error(ask(served, user="x" * 3_000_000), 413, "request_too_large", None)

    def pieces() -> Iterator[bytes]:
        for _ in range(30):
            yield b" " * 100_000

    headers = {"content-type": "application/json"}
    response = HTTP.post(f"{served.url}/v1/chat/completions", content=pieces(), headers=headers)
    check_error(response, 413, "request_too_large", None)


def test_the_decoders_refusals_keep_their_status(served: Gateway) -> None:
    served.decoder.refusal = DialogFailed(status=429, code="decoder_full", message="full", retry_after_s=2.5)
    response = ask(served, stream=True)
    check_error(response, 429, "decoder_full", None)
    assert response.headers["retry-after"] == "3"
    served.decoder.refusal = DialogFailed(status=409, code="no_frame", message="no frame yet")
    check_error(ask(served), 409, "no_frame", None)


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_outlives_its_decoders(served: Gateway, stream: bool) -> None:
    served.decoder.dies_after = [2, 0, 3]
    response = ask(served, stream=stream)
    if stream:
        text = "".join(e["choices"][0]["delta"].get("content", "") for e in events(response)[:-1])
    else:
        text = response.json()["choices"][0]["message"]["content"]
    assert text == TEXT
    assert [len(request.prior_tokens) for request in served.decoder.requests] == [0, 2, 2, 5]
    assert {request.request_id for request in served.decoder.requests} == {
        served.decoder.requests[0].request_id
    }


def test_a_decoder_that_is_lost_for_good_is_told(served: Gateway) -> None:
    served.decoder.dies_after = [0, 0, 0, 0]
    # The first token never came, so the status can still tell; DialogStarted did come.
    check_error(ask(served), 503, "decoder_lost", None)
    served.decoder.dies_after = [2, 0, 0, 0]
    *chunks, last = events(ask(served, stream=True))
    assert last["error"]["code"] == "decoder_lost"
    assert "".join(c["choices"][0]["delta"].get("content", "") for c in chunks) == "".join(WORDS[:2])


def test_a_stream_without_new_tokens_is_kept_alive(served: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.gateway.chat.endpoint.KEEP_ALIVE_S", 0.02)
    served.decoder.start_over(pace_s=0.1)
    text = ask(served, stream=True).text
    assert text.count("\n\n: still here\n\n") >= len(WORDS)
    assert text.endswith("data: [DONE]\n\n")


def test_a_stream_that_fails_ends_with_the_error(served: Gateway) -> None:
    served.decoder.fails_after = 3
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0) as client:
        stream = client.chat.completions.create(model=MODEL, messages=messages(), stream=True)
        words: list[str] = []
        with pytest.raises(openai.APIError, match="the engine failed"):
            words.extend(chunk.choices[0].delta.content or "" for chunk in stream)
    assert "".join(words) == "".join(WORDS[:3])
    check_error(ask(served), 500, "engine_failed", None)


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_goes_away_ends_its_dialog(served: Gateway, stream: bool) -> None:
    served.decoder.holds_after = 3
    body = {"model": MODEL, "messages": messages(), "stream": stream}
    timeout = httpx.Timeout(5, read=0.3)
    with httpx.Client(timeout=timeout) as client, pytest.raises(httpx.ReadTimeout):
        client.post(f"{served.url}/v1/chat/completions", json=body)
    wait_for(lambda: served.decoder.requests and served.decoder.num_open == 0)


@pytest.mark.parametrize(
    ("kind", "url"), [("video", "data:video/mp4;base64,"), ("image", "data:image/png;base64,")]
)
def test_a_clip_is_played_and_asked_about_at_its_end(served: Gateway, kind: str, url: str) -> None:
    url += base64.b64encode(b"media").decode()
    part = {"type": f"{kind}_url", f"{kind}_url": {"url": url}}
    answer = ask(served, messages=messages(part=part)).json()
    assert served.player.played[-1] == (b"media", kind)
    request = served.decoder.requests[0]
    assert request.camera.startswith("clip-")
    assert request.visual_context == "frozen"
    assert {token["frame_age_ms"] for token in answer["streamchat"]["tokens"]} == {0.0}
    late = ask(served, messages=messages(part=part), streamchat={"visual_context": "live"})
    check_error(late, 400, "invalid_option", "streamchat.visual_context")
