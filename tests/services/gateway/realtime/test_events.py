"""What a client may set in a session."""

from __future__ import annotations

import json
from typing import Any

import pytest

from services.gateway.realtime.events import SessionUpdate, parse_event


@pytest.mark.parametrize(
    "session",
    [
        # A text-only client of the API as it is generally available.
        {"type": "realtime", "output_modalities": ["text"], "tools": [], "tool_choice": "auto",
         "audio": {"input": {"turn_detection": None}}},
        {"audio": {"input": {"format": {"type": "audio/pcm", "rate": 24000}, "transcription": None,
                             "turn_detection": {"type": "semantic_vad"}}, "output": {"voice": "marin"}}},
        {"tools": [{"type": "function", "name": "f"}], "tool_choice": "none", "parallel_tool_calls": False},
        {"tracing": "auto", "truncation": "auto", "include": ["item.input_audio_transcription.logprobs"],
         "prompt": None, "reasoning": {"effort": "low"}, "max_output_tokens": "inf"},
        # The same as the API was before.
        {"modalities": ["text"], "turn_detection": None, "max_response_output_tokens": "inf"},
        {"modalities": ["text"], "voice": "alloy", "input_audio_format": "pcm16", "output_audio_format": "pcm16",
         "input_audio_transcription": {"model": "whisper-1"}, "max_response_output_tokens": 7},
    ],
)  # fmt: skip
def test_what_a_text_client_sets_beside_its_instructions_costs_it_nothing(session: Any) -> None:
    session = {**session, "instructions": "Say little."}
    event, ignored = parse_event(json.dumps({"type": "session.update", "session": session}))
    assert isinstance(event, SessionUpdate)
    assert event.session.instructions == "Say little."
    assert ignored == []


def test_unknown_fields_are_named() -> None:
    _, ignored = parse_event(
        '{"type": "response.create", "response": {"surprise": 1, "voice": "a", "x": null}}'
    )
    assert ignored == ["response.surprise"]
