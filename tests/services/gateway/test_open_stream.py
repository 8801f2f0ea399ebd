"""Streams end when their reader goes away, and are cut when it stops reading."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncGenerator, MutableMapping
from typing import Any

import pytest

from services.gateway.open_stream import OpenStream
from tests.services.served_gateway import frame, gateway, wait_for

Message = MutableMapping[str, Any]


class Reader:
    """The other end: takes `takes` pieces, then no more; may go away."""

    def __init__(self, takes: int) -> None:
        self.taken: list[bytes] = []
        self.gone = asyncio.Event()
        self._takes = takes

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.body":
            if len(self.taken) >= self._takes:
                await asyncio.Event().wait()
            self.taken.append(message["body"])

    async def receive(self) -> Message:
        await self.gone.wait()
        return {"type": "http.disconnect"}


class Source:
    """An endless stream that counts what was asked of it."""

    def __init__(self) -> None:
        self.num_made = 0
        self.closed = False

    async def pieces(self) -> AsyncGenerator[bytes, None]:
        while True:
            self.num_made += 1
            yield b"piece"

    async def close(self) -> None:
        self.closed = True


async def test_a_reader_that_stops_reading_is_cut_off_and_nothing_piles_up() -> None:
    source, reader = Source(), Reader(takes=3)
    stream = OpenStream(source.pieces(), close=source.close, media_type="text/plain", send_timeout_s=0.05)
    await stream({"type": "http"}, reader.receive, reader.send)
    assert source.closed
    assert source.num_made == 4  # one piece waits, never more


async def test_a_reader_that_goes_away_ends_the_stream() -> None:
    source, reader = Source(), Reader(takes=3)
    stream = OpenStream(source.pieces(), close=source.close, media_type="text/plain")
    reader.gone.set()
    await stream({"type": "http"}, reader.receive, reader.send)
    assert source.closed


async def test_a_stream_that_breaks_is_still_closed() -> None:
    async def broken() -> AsyncGenerator[bytes, None]:
        yield b"piece"
        raise ValueError("broken")

    source, reader = Source(), Reader(takes=9)
    stream = OpenStream(broken(), close=source.close, media_type="text/plain")
    with pytest.raises(ValueError, match="broken"):
        await stream({"type": "http"}, reader.receive, reader.send)
    assert source.closed


def test_a_viewer_that_does_not_read_costs_others_nothing() -> None:
    with gateway() as served, socket.socket() as silent:
        port = int(served.url.rsplit(":", 1)[1])
        silent.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        silent.connect(("127.0.0.1", port))
        silent.sendall(b"GET /v1/pictures HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n")
        picture = bytes(200_000)
        with socket.create_connection(("127.0.0.1", port)) as lively:
            lively.sendall(b"GET /v1/cameras/front-door/stream HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n")
            lively.settimeout(10)
            seen = 0

            def read() -> int:
                nonlocal seen
                seen += len(lively.recv(2**20))
                return seen

            wait_for(read)
            for number in range(10, 40):  # 6 MB: more than the sockets hold
                before = seen
                served.store.append(frame("front-door", number, picture=picture), capacity=4)
                wait_for(lambda before=before: read() >= before + len(picture))
