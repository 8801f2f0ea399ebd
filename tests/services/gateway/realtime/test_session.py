"""The realtime API, spoken by the unmodified openai client and by a plain WebSocket."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from starlette.websockets import WebSocket
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from services.access.caller import Caller
from services.gateway.question_service import QuestionService
from services.gateway.realtime.session import RealtimeSession
from services.messages.dialog import DialogFailed
from services.settings import Settings
from tests.services.adapters.memory_frame_store import MemoryFrameStore
from tests.services.served_gateway import (
    MODEL,
    WORDS,
    Gateway,
    ScriptedDecoder,
    ScriptedPlayer,
    frame,
    gateway,
    wait_for,
)

TEXT = "".join(WORDS)
SESSION = {"type": "session.update", "session": {"type": "realtime", "streamchat": {"camera": "front-door"}}}


@pytest.fixture(scope="module")
def served() -> Iterator[Gateway]:
    with gateway(Settings(access="open", max_completion_tokens=50)) as served:
        yield served


@pytest.fixture
def talk(served: Gateway) -> Iterator[Talk]:
    served.decoder.start_over()
    with connect(f"ws{served.url[4:]}/v1/realtime?model={MODEL}", max_size=None) as socket:
        talk = Talk(socket)
        assert talk.event()["type"] == "session.created"
        yield talk


class Talk:
    """A conversation over one socket."""

    def __init__(self, socket: ClientConnection) -> None:
        self._socket = socket

    def send(self, event: Any) -> None:
        self._socket.send(event if isinstance(event, str | bytes) else json.dumps(event))

    def event(self) -> Any:
        return json.loads(self._socket.recv(timeout=10))

    def until(self, kind: str) -> list[Any]:
        events = [self.event()]
        while events[-1]["type"] != kind:
            events.append(self.event())
        return events

    def error(self) -> Any:
        event = self.event()
        assert event["type"] == "error"
        return event["error"]

    def say(self, text: str, role: str = "user") -> None:
        content = [{"type": "output_text" if role == "assistant" else "input_text", "text": text}]
        self.send(
            {
                "type": "conversation.item.create",
                "item": {"type": "message", "role": role, "content": content},
            }
        )
        self.until("conversation.item.done")

    def ask(self, text: str, **options: Any) -> list[Any]:
        self.say(text)
        self.send({"type": "response.create", "response": options})
        return self.until("response.done")

    def look_at_the_door(self, **options: Any) -> Any:
        self.send({"type": "session.update", "session": {"streamchat": {"camera": "front-door", **options}}})
        return self.until("session.updated")[-1]["session"]


async def test_the_openai_client_talks(served: Gateway, talk: Talk) -> None:
    async with (
        openai.AsyncOpenAI(base_url=f"{served.url}/v1", api_key="none") as client,
        client.realtime.connect(model=MODEL) as connection,
    ):
        session: Any = {
            "type": "realtime",
            "instructions": "Be brief.",
            "streamchat": {"camera": "front-door"},
        }
        await connection.session.update(session=session)
        content: Any = [{"type": "input_text", "text": "What is happening?"}]
        await connection.conversation.item.create(
            item={"type": "message", "role": "user", "content": content}
        )
        await connection.response.create()
        text = ""
        async for event in connection:
            if event.type == "response.output_text.delta":
                text += event.delta
                facts: Any = event.model_extra and event.model_extra["streamchat"]
                assert facts["tokens"][0]["frame_id"]
            if event.type == "response.done":
                assert event.response.status == "completed"
                assert event.response.usage is not None
                assert event.response.usage.output_tokens == len(WORDS)
                break
    assert text == TEXT
    assert [m.role for m in served.decoder.requests[0].messages] == ["system", "user"]


def test_a_response_has_openais_events_in_order(talk: Talk) -> None:
    talk.look_at_the_door()
    events = talk.ask("What is happening?", metadata={"a": "b"})
    kinds = [event["type"] for event in events if event["type"] != "response.output_text.delta"]
    assert kinds == [
        "response.created",
        "response.output_item.added",
        "conversation.item.added",
        "response.content_part.added",
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "conversation.item.done",
        "response.done",
    ]
    assert len({event["event_id"] for event in events}) == len(events)
    deltas = [event for event in events if event["type"] == "response.output_text.delta"]
    assert "".join(event["delta"] for event in deltas) == TEXT
    assert len({event["item_id"] for event in deltas}) == 1
    response = events[-1]["response"]
    assert response["output"][0]["content"] == [{"type": "output_text", "text": TEXT}]
    assert response["metadata"] == {"a": "b"}
    assert response["usage"]["total_tokens"] == 7 + len(WORDS)
    assert response["streamchat"]["frame_age_p50_ms"] >= 0


def test_the_session_keeps_what_was_said_and_set(served: Gateway, talk: Talk) -> None:
    session = talk.look_at_the_door(visual_context="frozen", frames=3, tokens_per_second=900)
    assert session["streamchat"]["frames"] == 3
    talk.send({"type": "session.update", "session": {"streamchat": {"max_frame_age_ms": 5, "frames": None}}})
    ours = talk.event()["session"]["streamchat"]
    assert (ours["camera"], ours["frames"], ours["max_frame_age_ms"]) == ("front-door", None, 5)
    talk.ask("One?")
    talk.ask("Two?", streamchat={"visual_context": "live"}, max_output_tokens=2)
    first, second = served.decoder.requests
    assert (first.visual_context, first.num_frames, first.tokens_per_second) == ("frozen", None, 900)
    assert (second.visual_context, second.max_tokens) == ("live", 2)
    turns = [(message.role, message.text) for message in second.messages]
    assert turns == [("user", "One?"), ("assistant", TEXT), ("user", "Two?")]


def test_a_response_out_of_the_conversation_leaves_no_trace(served: Gateway, talk: Talk) -> None:
    talk.look_at_the_door()
    kinds = {event["type"] for event in talk.ask("One?", conversation="none")}
    assert "conversation.item.added" not in kinds
    talk.ask("Two?")
    assert [message.text for message in served.decoder.requests[1].messages] == ["One?", "Two?"]


def test_an_answer_cut_short_is_incomplete_and_says_why(served: Gateway, talk: Talk) -> None:
    served.decoder.start_over(pace_s=0.06)
    talk.look_at_the_door(time_limit_s=0.1)
    cases = {"max_output_tokens": ({"max_output_tokens": 1}, "tokens"), "time_limit": ({}, "time")}
    for reason, (options, limit) in cases.items():
        response = talk.ask("One?", **options)[-1]["response"]
        assert (response["status"], response["status_details"]["reason"]) == ("incomplete", reason)
        assert response["streamchat"]["limit"] == limit


def test_cancel_works_at_once(served: Gateway, talk: Talk) -> None:
    served.decoder.holds_after = 3
    talk.look_at_the_door()
    talk.say("What is happening?")
    talk.send({"type": "response.create"})
    while talk.event().get("delta") != WORDS[2]:
        pass
    talk.send({"type": "response.create"})
    assert talk.error()["code"] == "conversation_already_has_active_response"
    began_s = time.monotonic()
    talk.send({"type": "response.cancel"})
    events = talk.until("response.done")
    assert time.monotonic() - began_s < 1
    assert events[0]["text"] == "".join(WORDS[:3])
    assert events[-1]["response"]["status"] == "cancelled"
    assert events[-1]["response"]["output"][0]["status"] == "incomplete"
    wait_for(lambda: served.decoder.num_open == 0)
    talk.send({"type": "response.cancel", "event_id": "mine"})
    error = talk.error()
    assert (error["code"], error["event_id"]) == ("response_cancel_not_active", "mine")
    served.decoder.holds_after = None
    assert talk.ask("And now?")[-1]["response"]["status"] == "completed"


def test_a_cancel_right_behind_the_question_still_ends_the_response(served: Gateway, talk: Talk) -> None:
    served.decoder.holds_after = 0
    talk.look_at_the_door()
    talk.say("What is happening?")
    talk.send({"type": "response.create"})
    talk.send({"type": "response.cancel"})
    assert talk.until("response.done")[-1]["response"]["status"] == "cancelled"


def test_a_failed_response_says_why_and_the_connection_lives(served: Gateway, talk: Talk) -> None:
    talk.look_at_the_door()
    served.decoder.fails_after = 3
    response = talk.ask("One?")[-1]["response"]
    assert (response["status"], response["status_details"]["error"]["code"]) == ("failed", "engine_failed")
    served.decoder.refusal = DialogFailed(status=429, code="decoder_full", message="full")
    response = talk.ask("Two?")[-1]["response"]
    assert (response["status"], response["status_details"]["error"]["code"]) == ("failed", "decoder_full")
    served.decoder.refusal, served.decoder.fails_after = None, None
    assert talk.ask("Three?")[-1]["response"]["status"] == "completed"


def test_an_answer_outlives_its_decoder(served: Gateway, talk: Talk) -> None:
    talk.look_at_the_door()
    served.decoder.dies_after = [3]
    assert talk.ask("One?")[-1]["response"]["output"][0]["content"][0]["text"] == TEXT


def test_a_camera_that_falls_silent_is_told_once(served: Gateway, talk: Talk) -> None:
    served.store.append(frame("old", 1, time.time() - 60), capacity=4)
    talk.look_at_the_door(camera="old")
    lost = [event for event in talk.ask("One?") if event["type"] == "streamchat.camera.lost"]
    assert len(lost) == 1
    assert lost[0]["camera"] == "old"
    assert lost[0]["frame_age_ms"] > 59_000


BAD: list[tuple[Any, str, str | None]] = [
    ("{", "malformed_json", None),
    (b"{}", "invalid_message", None),
    ("x" * (2**20 + 1), "message_too_large", None),
    ([], "unknown_event", "type"),
    ({"type": "input_audio_buffer.append"}, "unknown_event", "type"),
    ({"type": "session.update"}, "invalid_option", "session"),
    ({"type": "session.update", "session": {"model": "other"}}, "model_not_found", "model"),
    ({"type": "session.update", "session": {"prompt": {"id": "p"}}}, "unsupported_parameter", "session.prompt"),
    ({"type": "session.update", "session": {"modalities": ["audio", "text"]}}, "unsupported_parameter",
     "session.modalities"),
    ({"type": "session.update", "session": {"tools": [{"type": "function", "name": "f"}], "tool_choice": "auto"}},
     "unsupported_parameter", "session.tools"),
    ({"type": "session.update", "session": {"output_modalities": ["audio"]}}, "invalid_option",
     "session.output_modalities[0]"),
    ({"type": "session.update", "session": {"max_output_tokens": 51}}, "invalid_option", "max_output_tokens"),
    ({"type": "session.update", "session": {"streamchat": {"frames": "x"}}}, "invalid_option",
     "session.streamchat.frames"),
    ({"type": "conversation.item.create", "item": {"type": "message", "role": "user", "content": [
        {"type": "input_image", "image_url": "data:image/png;base64,AAAA"}]}}, "unknown_content_part",
     "item.content[0].type"),
    ({"type": "conversation.item.create", "previous_item_id": "none", "item": {"type": "message", "role": "user",
      "content": []}}, "unknown_item", None),
    ({"type": "conversation.item.delete", "item_id": "none"}, "unknown_item", None),
    ({"type": "response.create", "response": {"input": []}}, "unsupported_parameter", "response.input"),
    ({"type": "response.create"}, "no_camera", "session.streamchat.camera"),
    ({"type": "response.create", "response": {"streamchat": {"camera": "front-door"}}}, "empty_question", None),
]  # fmt: skip


def test_the_instructions_of_a_text_client_are_kept(talk: Talk) -> None:
    audio = {"input": {"turn_detection": None}}
    session = {"instructions": "Say little.", "audio": audio, "max_response_output_tokens": 7}
    talk.send({"type": "session.update", "session": session})
    event = talk.event()
    assert (event["session"]["instructions"], event["session"]["max_output_tokens"]) == ("Say little.", 7)
    assert "streamchat" not in event


def test_a_session_can_be_sent_back_as_it_came(talk: Talk) -> None:
    session = talk.look_at_the_door(frames=3)
    talk.send({"type": "session.update", "session": {**session, "instructions": "Say little."}})
    assert talk.event()["session"] == {**session, "instructions": "Say little."}


def test_fields_that_nobody_knows_are_ignored_and_named(talk: Talk) -> None:
    session = {"streamchat": {"camera": "front-door"}, "surprise": 1, "nothing": None}
    talk.send({"type": "session.update", "session": session})
    assert talk.event()["streamchat"] == {"ignored": ["session.surprise"]}
    created = talk.ask("One?", surprise=2)[0]
    assert created["type"] == "response.created"
    assert created["streamchat"] == {"ignored": ["response.surprise"]}


@pytest.mark.parametrize(("event", "code", "param"), BAD)
def test_a_bad_event_is_told_and_the_connection_lives(
    talk: Talk, event: Any, code: str, param: str | None
) -> None:
    talk.send(event)
    error = talk.error()
    assert (error["code"], error["param"]) == (code, param)
    assert error["message"]
    talk.send(SESSION)
    assert talk.event()["type"] == "session.updated"


def test_an_unknown_camera_is_told_before_a_response_begins(talk: Talk) -> None:
    talk.look_at_the_door(camera="nowhere")
    talk.say("What is happening?")
    talk.send({"type": "response.create"})
    assert talk.error()["code"] == "unknown_camera"


def test_items_can_be_placed_shown_and_deleted(served: Gateway, talk: Talk) -> None:
    talk.look_at_the_door()
    item: dict[str, Any] = {
        "type": "message",
        "role": "user",
        "content": [{"type": "input_text", "text": "Two?"}],
    }
    talk.send({"type": "conversation.item.create", "item": {**item, "id": "two"}})
    assert talk.until("conversation.item.done")[-1]["previous_item_id"] is None
    early = {**item, "id": "one", "content": [{"type": "input_text", "text": "One?"}]}
    talk.send({"type": "conversation.item.create", "item": early, "previous_item_id": "root"})
    talk.until("conversation.item.done")
    talk.send({"type": "conversation.item.retrieve", "item_id": "one"})
    assert talk.event()["item"]["content"][0]["text"] == "One?"
    talk.send({"type": "conversation.item.create", "item": early})
    assert talk.error()["code"] == "item_exists"
    talk.send({"type": "conversation.item.delete", "item_id": "one"})
    assert talk.event()["type"] == "conversation.item.deleted"
    talk.send({"type": "response.create"})
    talk.until("response.done")
    assert [message.text for message in served.decoder.requests[0].messages] == ["Two?"]


def test_a_wrong_model_is_told_and_the_connection_closed(served: Gateway) -> None:
    with connect(f"ws{served.url[4:]}/v1/realtime?model=other") as socket:
        assert json.loads(socket.recv(timeout=5))["error"]["code"] == "model_not_found"
        with pytest.raises(ConnectionClosed):
            socket.recv(timeout=5)


def test_only_the_gateways_own_page_may_connect_from_a_browser(served: Gateway) -> None:
    url = f"ws{served.url[4:]}/v1/realtime"
    with connect(url, origin=served.url) as socket:  # type: ignore[arg-type]
        assert json.loads(socket.recv(timeout=5))["type"] == "session.created"
    with pytest.raises(InvalidStatus), connect(url, origin="http://evil.example"):  # type: ignore[arg-type]
        pass


async def test_a_client_that_stops_reading_is_cut_off() -> None:
    store = MemoryFrameStore()
    store.append(frame("front-door", 1), capacity=4)
    decoder = ScriptedDecoder(store)
    questions = QuestionService(Settings(), MODEL, store, decoder.decode, ScriptedPlayer(store).play_clip)
    item = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "?"}]}
    events: list[Any] = [
        SESSION,
        {"type": "conversation.item.create", "item": item},
        {"type": "response.create"},
    ]
    arriving = [
        {"type": "websocket.connect"},
        *({"type": "websocket.receive", "text": json.dumps(e)} for e in events),
    ]
    sent: list[str] = []

    async def receive() -> Any:
        return arriving.pop(0) if arriving else await asyncio.Event().wait()

    async def send(message: Any) -> None:
        if len(sent) == 10:  # two words have come: from here on nothing is taken
            await asyncio.Event().wait()
        sent.append(message["type"])

    socket = WebSocket({"type": "websocket", "headers": []}, receive, send)
    await socket.accept()
    await RealtimeSession(questions, socket, Caller(), send_timeout_s=0.05).run()
    assert len(sent) == 10
    assert decoder.num_open == 0
    questions.close()


def test_a_client_that_goes_away_ends_its_dialog(served: Gateway, talk: Talk) -> None:
    served.decoder.holds_after = 2
    with connect(f"ws{served.url[4:]}/v1/realtime") as socket:
        other = Talk(socket)
        other.look_at_the_door()
        other.say("What is happening?")
        other.send({"type": "response.create"})
        wait_for(lambda: served.decoder.num_open == 1)
    wait_for(lambda: served.decoder.num_open == 0)
