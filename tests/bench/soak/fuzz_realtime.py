"""Random events over a Realtime socket: good ones, changed ones, and noise."""

from __future__ import annotations

import json
from random import Random
from typing import Any

from websockets.exceptions import ConnectionClosed, InvalidHandshake
from websockets.sync.client import ClientConnection, connect

from tests.bench.soak.findings import Fuzzing
from tests.bench.soak.mutate import mutated, to_json

KIND = "realtime"
NUM_EVENTS = 12  # of one connection
WAIT_S = 0.3  # for what comes after an event
PATIENCE_S = 20.0
GOOD_CODES = (
    1000,
    1001,
    1003,
    1007,
    1008,
    1009,
    1013,
)  # 1011 is a fault of the server's own, 1006 a broken line
SAY = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "What is happening?"}]}
EVENTS: tuple[dict[str, Any], ...] = (
    {"type": "session.update", "session": {"type": "realtime", "streamchat": {"camera": "soak-1", "frames": 2},
                                           "output_modalities": ["text"], "instructions": "Be brief."}},
    {"type": "conversation.item.create", "item": SAY, "previous_item_id": None},
    {"type": "conversation.item.retrieve", "item_id": "item_1"},
    {"type": "conversation.item.delete", "item_id": "item_1"},
    {"type": "conversation.item.truncate", "item_id": "item_1", "content_index": 0, "audio_end_ms": 5},
    {"type": "response.create", "response": {"max_output_tokens": 5, "metadata": {"a": "b"}}},
    {"type": "response.create", "response": {"conversation": "none", "input": [SAY], "max_output_tokens": 3}},
    {"type": "response.cancel"},
    {"type": "input_audio_buffer.append", "audio": "AAAA"},
)  # fmt: skip


def fuzz_realtime(url: str, fuzzing: Fuzzing) -> None:
    """One conversation after the other until the end."""
    address = url.replace("http", "ws", 1) + "/v1/realtime?model=streamchat-tiny"
    while fuzzing.goes_on():
        sent: list[Any] = []
        try:
            with connect(address, proxy=None, open_timeout=PATIENCE_S, close_timeout=1.0) as socket:
                _talk(socket, sent, fuzzing)
        except ConnectionClosed as closed:
            code = closed.rcvd.code if closed.rcvd else 1006
            fuzzing.findings.count(f"{KIND} closed {code}")
            if code not in GOOD_CODES:
                fuzzing.findings.break_promise(KIND, "a socket closes with a reason", sent[-3:], closed)
        except (InvalidHandshake, OSError, TimeoutError) as error:
            fuzzing.findings.count(f"{KIND} {type(error).__name__}")
            fuzzing.findings.break_promise(KIND, "a socket opens", "", repr(error))


def _talk(socket: ClientConnection, sent: list[Any], fuzzing: Fuzzing) -> None:
    for _ in range(fuzzing.random.randint(1, NUM_EVENTS)):
        if not fuzzing.goes_on():
            return
        event = _event(fuzzing.random)
        sent.append(event[:500])
        socket.send(event)
        _read(socket, sent, fuzzing)
    # Whatever was said before: a wrong event is answered with an error that has the event's id.
    socket.send(json.dumps({"type": "no.such.event", "event_id": "last"}))
    if not _read(socket, sent, fuzzing, until="last"):
        fuzzing.findings.break_promise(KIND, "an event is answered", sent[-3:], "nothing")


def _event(random: Random) -> bytes | str:
    chance = random.random()
    if chance < 0.05:
        return random.randbytes(random.choice((0, 1, 3000)))
    if chance < 0.1:
        return random.choice(("", "{", "[]", "null", "\0", "[" * 5000, '{"type": 5}', '{"type": "\\ud800"}'))
    changes = random.choice((0, 0, 1, 1, 2))
    return to_json(mutated(random.choice(EVENTS), random, num_changes=changes)).decode()


def _read(socket: ClientConnection, sent: list[Any], fuzzing: Fuzzing, until: str = "") -> bool:
    """Check what comes, until nothing comes for a while or an error with this event id does."""
    while True:
        try:
            event: Any = json.loads(socket.recv(timeout=PATIENCE_S if until else WAIT_S))
        except TimeoutError:
            return not until
        fuzzing.findings.count(f"{KIND} {event['type']}")
        if event["type"] == "error":
            error = event["error"]
            if not (error.get("message") and error.get("type")) or error.get("code") == "internal_error":
                fuzzing.findings.break_promise(KIND, "a refusal has the shape of an error", sent[-3:], event)
            if until and error.get("event_id") == until:
                return True
