"""What a chat request may hold, and how its faults are named."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from model.config import PROJECT_ROOT
from services.gateway.chat.request import (
    CHAT_NEUTRAL_VALUES,
    ChatRequest,
    check_extra,
    field_path,
    parse_json,
    parse_request,
)
from services.messages.api_error import ApiError
from services.settings import Settings

PLAIN: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "?"}]}


@pytest.mark.parametrize(
    ("location", "path"),
    [
        (("messages", 0, "content", "str"), "messages[0].content"),
        (("messages", 0, "content", "list[union]", 1, "text", "text"), "messages[0].content[1].text"),
        (("messages", 2, "content", "list[union]", 0, "video_url", "video_url", "url"),
         "messages[2].content[0].video_url.url"),
        (("stop", "list[constrained-str]", 0), "stop[0]"),
        (("streamchat", "frames"), "streamchat.frames"),
    ],
)  # fmt: skip
def test_a_fields_path_is_the_requests_own(location: tuple[int | str, ...], path: str) -> None:
    assert field_path(location) == path


@pytest.mark.parametrize(("name", "values"), CHAT_NEUTRAL_VALUES.items())
def test_what_changes_nothing_is_accepted(name: str, values: tuple[Any, ...]) -> None:
    for value in (None, *values):
        assert parse_request({**PLAIN, name: value})[1] == []
    with pytest.raises(ApiError) as raised:
        check_extra({name: "something else"}, CHAT_NEUTRAL_VALUES)
    assert raised.value.param == name


def test_harmless_fields_are_accepted() -> None:
    request, ignored = parse_request(
        {**PLAIN, "user": "u", "metadata": {"a": "b"}, "store": True, "service_tier": "auto"}
    )
    assert request.streamchat is None
    assert ignored == []


# Each is documented by OpenAI, and none changes an answer in text.
DOCUMENTED: list[dict[str, Any]] = [
    {"top_p": 0},
    {"top_p": 1, "temperature": 2, "frequency_penalty": -2, "presence_penalty": 2},
    {"tools": [{"type": "function", "function": {"name": "f"}}], "tool_choice": "none"},
    {"functions": [{"name": "f"}], "function_call": "none"},
    {"tools": [], "tool_choice": "auto", "parallel_tool_calls": False},
    {"n": 1, "response_format": {"type": "text"}, "modalities": ["text"], "logit_bias": {}, "top_logprobs": 0},
    {"audio": {"voice": "alloy", "format": "wav"}},
    {"prediction": {"type": "content", "content": "the same text again"}},
    {"reasoning_effort": "low"},
    {"reasoning_effort": "xhigh", "verbosity": "medium"},
    {"prompt_cache_key": "k", "prompt_cache_retention": "24h", "safety_identifier": "s", "store": True},
    {"service_tier": "flex", "metadata": {"a": "b"}, "user": "u"},
    {"stream_options": {"include_usage": False, "include_obfuscation": False}},
    {"stop": None, "seed": None, "stream": None, "max_tokens": None, "logprobs": None, "streamchat": None},
    {"stop": [], "seed": -1, "max_completion_tokens": 1},
    {"messages": [{"role": "assistant", "content": None, "tool_calls": []}, {"role": "user", "content": "?"}]},
    {"messages": [{"role": "assistant", "refusal": None, "audio": None}, {"role": "user", "content": "?"}]},
    {"messages": [{"role": "developer", "content": "d", "name": "n"}, {"role": "user", "content": "?"}]},
    {"messages": [{"role": "user", "content": [
        {"type": "text", "text": "?", "cache_control": {"type": "ephemeral"}},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA", "detail": "high"}}]}]},
    {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "data:image/png;base64,AA"}]}]},
]  # fmt: skip


@pytest.mark.parametrize("options", DOCUMENTED)
def test_every_documented_value_that_changes_nothing_is_accepted(options: dict[str, Any]) -> None:
    assert parse_request({**PLAIN, **options})[1] == []


def test_a_field_of_a_newer_client_is_ignored_and_named() -> None:
    _, ignored = parse_request({**PLAIN, "quantum_mode": "on", "user": "u", "thinking": {"budget": 3}})
    assert ignored == ["quantum_mode", "thinking"]


@pytest.mark.parametrize(
    "choice", [None, "auto", "required", {"type": "function", "function": {"name": "f"}}]
)
def test_tools_that_might_be_called_are_refused(choice: Any) -> None:
    tools = [{"type": "function", "function": {"name": "f"}}]
    with pytest.raises(ApiError, match="unsupported_parameter"):
        parse_request({**PLAIN, "tools": tools, "tool_choice": choice})


def test_all_our_options_are_read() -> None:
    options = {"visual_context": "frozen", "frames": 4, "tokens_per_second": 3, "max_frame_age_ms": 250.5}
    options |= {"min_p": 0.1, "repetition_penalty": 1.5, "time_limit_s": 30.0, "resumable": True}
    read = parse_request({**PLAIN, "streamchat": options})[0].streamchat
    assert read is not None
    assert read.model_dump() == options


def test_json_is_strict() -> None:
    assert parse_json('{"a": "\\ud83d\\ude80"}') == {"a": "🚀"}
    for text in ('{"a": Infinity}', '"\\ud800"', "{'a': 1}", "", '{"a": 1} x', "9" * 5000):
        with pytest.raises(ApiError, match="malformed_json"):
            parse_json(text)


ROW = re.compile(r"\| `([\w.]+)`[^|]* \| (integer|number) \| (?:0, or )?(above )?(\S+) \| ([^|]+) \|")
SERVERS = re.compile(r"the server's `(\w+)` \((\d+)\)")


def numeric_fields(schema: dict[str, Any], prefix: str = "") -> set[str]:
    """The fields of a JSON schema that are numbers or map to numbers."""
    text = {name: json.dumps(field) for name, field in schema["properties"].items()}
    return {prefix + name for name, field in text.items() if re.search(r'"type": "(number|integer)"', field)}


def with_value(field: str, value: float) -> dict[str, Any]:
    """A request with that value in a field of the documented table."""
    ours = field.removeprefix("streamchat.")
    if ours != field:
        return {**PLAIN, "streamchat": {ours: value}}
    return {**PLAIN, field: {"5": value} if field == "logit_bias" else value, "logprobs": True}


def test_the_documented_ranges_are_those_of_the_validators() -> None:
    rows = ROW.findall((PROJECT_ROOT / "docs" / "api.md").read_text())
    schema = ChatRequest.model_json_schema()
    ours = numeric_fields(schema["$defs"]["ChatOptions"], "streamchat.")
    assert {row[0] for row in rows} == numeric_fields(schema) | ours
    for field, kind, above, smallest, largest in rows:
        number, step = (int, 1) if kind == "integer" else (float, 1e-6)
        least = number(smallest) + (step if above else 0)
        servers = SERVERS.fullmatch(largest)
        most = number(servers[2] if servers else largest)
        for value in (least, most):
            parse_request(with_value(field, value))
        refused = [least - step]
        if servers:  # refused when the question is made: see test_endpoint.py
            assert getattr(Settings(), servers[1]) == most
        else:
            refused.append(most + step)
        if kind == "integer":
            refused.append(least + 0.5)
        for value in refused:
            with pytest.raises(ApiError, match="invalid_option"):
                parse_request(with_value(field, value))
