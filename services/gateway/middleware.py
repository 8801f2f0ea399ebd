"""Middleware of every request: HEAD like GET, a limit on the body's size, and security headers."""

from __future__ import annotations

import asyncio
from contextlib import suppress

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from services.gateway.metrics import GatewayMetrics
from services.messages.api_error import ApiError

BODY_TIMEOUT_S = 60.0  # a body that takes longer is refused, so it does not hold a connection for nothing
DRAIN_S = 5.0  # a body that is too large is read and discarded for this long, so its sender sees the response


class HeadAnswered(Exception):
    """The headers of a stream were sent to a client that asked for them alone."""


class HeadMiddleware:
    """Answers HEAD like GET, without the body. A stream of a GET route ends when its headers were sent."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "HEAD":
            return await self._app(scope, receive, send)

        async def send_without_body(message: Message) -> None:
            if message["type"] == "http.response.body":
                is_stream = message.get("more_body", False)
                await send({"type": "http.response.body", "body": b"", "more_body": False})
                if is_stream:
                    raise HeadAnswered
            else:
                await send(message)

        with suppress(HeadAnswered):
            await self._app({**scope, "method": "GET"}, receive, send_without_body)
        return None


class BodyLimitMiddleware:
    """Answers 413 if a body is too large, without keeping what was received of it, and 408 if it is too slow."""

    def __init__(self, app: ASGIApp, max_bytes: int, metrics: GatewayMetrics) -> None:
        self._app = app
        self._max_bytes = max_bytes
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        length = dict(scope["headers"]).get(b"content-length", b"0")
        if length.isdigit() and int(length) > self._max_bytes:
            return await self._send_too_large(scope, receive, send)
        num_bytes, is_complete = 0, False
        deadline_s = asyncio.get_running_loop().time() + BODY_TIMEOUT_S

        async def limited_receive() -> Message:
            nonlocal num_bytes, is_complete
            try:
                async with asyncio.timeout_at(None if is_complete else deadline_s):
                    message = await receive()
            except TimeoutError as error:
                raise ApiError(
                    408, "request_too_slow", f"no whole body came within {BODY_TIMEOUT_S:.0f} s"
                ) from error
            is_complete = not message.get("more_body", False)
            num_bytes += len(message.get("body", b""))
            if num_bytes > self._max_bytes:
                raise self._too_large
            return message

        return await self._app(scope, limited_receive, send)

    @property
    def _too_large(self) -> ApiError:
        message = f"the request's body is larger than {self._max_bytes} bytes: send a shorter or smaller clip"
        return ApiError(413, "request_too_large", message)

    async def _send_too_large(self, scope: Scope, receive: Receive, send: Send) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(DRAIN_S):
                while (await receive()).get("more_body"):
                    pass
        error = self._too_large
        self._metrics.record_error(error.code, error.status)
        await error.response({"Connection": "close"})(scope, receive, send)


class SecurityHeadersMiddleware:
    """Adds headers to every response: browsers load nothing from other sites, frame nothing and guess no types."""

    HEADERS = (
        (b"x-content-type-options", b"nosniff"),
        (b"x-frame-options", b"DENY"),
        (b"referrer-policy", b"same-origin"),  # with no-referrer, a browser would sign in with `Origin: null`
        (b"cross-origin-resource-policy", b"same-origin"),
        (b"cross-origin-opener-policy", b"same-origin"),
        (b"permissions-policy", b"camera=(), microphone=(), geolocation=()"),
        (
            b"content-security-policy",
            b"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; "
            b"connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
        ),
    )

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = message.get("headers", [])
                present = {name for name, _ in headers}  # a page may have a policy of its own
                missing = [header for header in self.HEADERS if header[0] not in present]
                message = {**message, "headers": [*headers, *missing]}
            await send(message)

        await self._app(scope, receive, send_with_headers if scope["type"] == "http" else send)
