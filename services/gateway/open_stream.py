"""A response that lasts: ends when its reader goes away, and is cut when its reader stops reading."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

STALL_S = 20.0  # a reader that takes nothing for this long is cut off

Result = TypeVar("Result")
log = logging.getLogger(__name__)


class ClientGone(Exception):
    """Nobody is left to answer."""


async def gone(receive: Receive) -> None:
    """Returns when the client has disconnected (its request was read before)."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def unless_gone(request: Request, work: Coroutine[Any, Any, Result]) -> Result:
    """The work's result; cancels the work and raises ClientGone when the client disconnects first."""
    task = asyncio.create_task(work)
    watch = asyncio.create_task(gone(request.receive))
    try:
        await asyncio.wait((task, watch), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientGone
        return await task
    finally:
        for each in (task, watch):
            each.cancel()
        await asyncio.gather(task, watch, return_exceptions=True)


class OpenStream(Response):
    """Sends what a generator yields, with the server's back-pressure: one piece waits, never more.

    `close` is called in any case, so what the stream holds (a dialog, a viewer's place) is given back.
    """

    def __init__(
        self,
        pieces: AsyncGenerator[bytes, None],
        *,
        close: Callable[[], Awaitable[None]],
        media_type: str,
        headers: dict[str, str] | None = None,
        stall_s: float = STALL_S,
    ) -> None:
        self.status_code = 200
        self.media_type = media_type
        self.background = None
        self._pieces = pieces
        self._close = close
        self._stall_s = stall_s
        # Buffers on the way (nginx and others) would hold words back.
        self.init_headers({"Cache-Control": "no-store", "X-Accel-Buffering": "no", **(headers or {})})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send until the generator ends, the client disconnects, or it stalls."""
        sending = asyncio.create_task(self._send(send))
        watch = asyncio.create_task(gone(receive))
        try:
            await asyncio.wait((sending, watch), return_when=asyncio.FIRST_COMPLETED)
            if sending.done():
                await sending
        except TimeoutError:
            log.warning("client cut off: it read nothing for %.0f s", self._stall_s)
        finally:
            for each in (sending, watch):
                each.cancel()
            await asyncio.gather(sending, watch, return_exceptions=True)
            await self._pieces.aclose()
            await self._close()

    async def _send(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        async for piece in self._pieces:
            async with asyncio.timeout(self._stall_s):
                await send({"type": "http.response.body", "body": piece, "more_body": True})
        async with asyncio.timeout(self._stall_s):
            await send({"type": "http.response.body", "body": b"", "more_body": False})
