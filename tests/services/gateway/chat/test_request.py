"""What a chat request may hold, and how its faults are named."""

from __future__ import annotations

from typing import Any

import pytest

from services.gateway.chat.request import (
    CHAT_NEUTRAL_VALUES,
    check_extra,
    field_path,
    parse_json,
    parse_request,
)
from services.messages.api_error import ApiError

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
        parse_request({**PLAIN, name: value})
    with pytest.raises(ApiError) as raised:
        check_extra({name: "something else"}, CHAT_NEUTRAL_VALUES)
    assert raised.value.param == name


def test_harmless_fields_are_accepted() -> None:
    request = parse_request(
        {**PLAIN, "user": "u", "metadata": {"a": "b"}, "store": True, "service_tier": "auto"}
    )
    assert request.streamchat is None


def test_all_our_options_are_read() -> None:
    options = {"visual_context": "frozen", "frames": 4, "tokens_per_second": 3, "max_frame_age_ms": 250.5}
    options |= {"min_p": 0.1, "repetition_penalty": 1.5}
    read = parse_request({**PLAIN, "streamchat": options}).streamchat
    assert read is not None
    assert read.model_dump() == options


def test_json_is_strict() -> None:
    assert parse_json('{"a": "\\ud83d\\ude80"}') == {"a": "🚀"}
    for text in ('{"a": Infinity}', '"\\ud800"', "{'a': 1}", "", '{"a": 1} x', "9" * 5000):
        with pytest.raises(ApiError, match="malformed_json"):
            parse_json(text)
