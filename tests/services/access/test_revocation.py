"""A key that is revoked ends what is open."""

from __future__ import annotations

import json
from contextlib import ExitStack

import httpx
import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from services.access.api_keys import edit_keys
from tests.services.access.keyed_gateway import Keys, bearer, body, receive, send
from tests.services.served_gateway import Gateway


def revoke(keys: Keys, name: str) -> None:
    with edit_keys(keys.path) as kept:
        del kept[keys.kept[name].id]


def test_a_revoked_key_ends_what_is_open(served: Gateway, http: httpx.Client, keys: Keys) -> None:
    headers = bearer(keys["revoked"])
    served.decoder.start_over(words=["word "] * 100_000, pace_s=0.05)
    with ExitStack() as open_:
        socket = open_.enter_context(connect(f"ws{served.url[4:]}/v1/realtime", additional_headers=headers))
        assert receive(socket)["type"] == "session.created"
        ask = body(stream=True)
        words = open_.enter_context(http.stream("POST", "/v1/chat/completions", json=ask, headers=headers))
        assert words.status_code == 200
        lines = words.iter_lines()
        next(lines)
        revoke(keys, "revoked")
        rest = list(lines)  # it ends
        send(socket, {"type": "response.cancel"})
        with pytest.raises(ConnectionClosed) as closed:
            receive(socket)
    assert json.loads(rest[-2].removeprefix("data: "))["error"]["code"] == "invalid_api_key"
    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == 1008
    served.decoder.start_over()
    assert http.get("/v1/models", headers=headers).status_code == 401
