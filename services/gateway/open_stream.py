"""A streaming response that ends when its client disconnects, and is cut off when its client stops reading."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

SEND_TIMEOUT_S = 20.0  # a client that reads nothing for this long is cut off

Result = TypeVar("Result")
log = logging.getLogger(__name__)


class ClientDisconnected(Exception):
    """The client disconnected before it was answered."""


async def wait_for_disconnect(receive: Receive) -> None:
    """Return when the client has disconnected. Its request must have been read before."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def cancel_on_disconnect(request: Request, work: Coroutine[Any, Any, Result]) -> Result:
    """The result of `work`. If the client disconnects first, cancels it and raises ClientDisconnected."""
    working = asyncio.create_task(work)
    disconnecting = asyncio.create_task(wait_for_disconnect(request.receive))
    try:
        await asyncio.wait((working, disconnecting), return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientDisconnected
        return await working
    finally:
        for task in (working, disconnecting):
            task.cancel()
        await asyncio.gather(working, disconnecting, return_exceptions=True)


class OpenStream(Response):
    """Sends the chunks of a generator at the speed of the client: at most one chunk waits.

    `close` is called in every case, so what the stream holds (a dialog, a viewer) is released.
    """

    def __init__(
        self,
        chunks: AsyncGenerator[bytes, None],
        *,
        close: Callable[[], Awaitable[None]],
        media_type: str,
        headers: dict[str, str] | None = None,
        send_timeout_s: float = SEND_TIMEOUT_S,
    ) -> None:
        self.status_code = 200
        self.media_type = media_type
        self.background = None
        self._chunks = chunks
        self._close = close
        self._send_timeout_s = send_timeout_s
        # A buffering proxy (nginx and others) would delay the tokens.
        self.init_headers({"Cache-Control": "no-store", "X-Accel-Buffering": "no", **(headers or {})})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send until the generator ends, the client disconnects, or a chunk cannot be sent in time."""
        sending = asyncio.create_task(self._send(send))
        disconnecting = asyncio.create_task(wait_for_disconnect(receive))
        try:
            await asyncio.wait((sending, disconnecting), return_when=asyncio.FIRST_COMPLETED)
            if sending.done():
                await sending
        except TimeoutError:
            log.warning("client cut off: it read nothing for %.0f s", self._send_timeout_s)
        finally:
            for task in (sending, disconnecting):
                task.cancel()
            await asyncio.gather(sending, disconnecting, return_exceptions=True)
            await self._chunks.aclose()
            await self._close()

    async def _send(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        async for chunk in self._chunks:
            async with asyncio.timeout(self._send_timeout_s):
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
        async with asyncio.timeout(self._send_timeout_s):
            await send({"type": "http.response.body", "body": b"", "more_body": False})
