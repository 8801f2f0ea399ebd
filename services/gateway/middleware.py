"""Middleware of every request: HEAD like GET, a limit on the body's size, and security headers."""

from __future__ import annotations

import asyncio
from contextlib import suppress

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from services.access.caller import Caller
from services.access.shared_places import SharedPlaces
from services.gateway.metrics import GatewayMetrics
from services.messages.api_error import ApiError
from services.settings import Settings

BODY_TIMEOUT_S = 60.0  # a body that takes longer is refused, so it does not hold a connection for nothing
DRAIN_S = 5.0  # a body that is refused is read and discarded for this long, so its sender sees the response
TOO_MANY_BYTES = "too_many_request_bytes"


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


class HeldBody:
    """The bytes of one request's body that the gateway holds, until its response begins."""

    def __init__(self, places: SharedPlaces, key_id: str | None) -> None:
        self._places, self._key_id = places, key_id
        self._num_bytes = 0
        self._is_released = False

    def grow_to(self, num_bytes: int) -> None:
        """The body has, or will have, at least so many bytes. Raises ApiError 429 if there is no room for them."""
        if num_bytes > self._num_bytes and not self._is_released:
            self._places.take(self._key_id, num_bytes - self._num_bytes)
            self._num_bytes = num_bytes

    def release(self) -> None:
        """Give the bytes back."""
        self._places.give_back(self._key_id, self._num_bytes)
        self._num_bytes, self._is_released = 0, True


class BodyLimitMiddleware:
    """Bounds the bodies of requests: one alone, all of a key, and all together.

    Answers 413 if a body is too large, without keeping what was received of it, 408 if it is too slow, and 429 if too
    many bytes are held already. A body that says its length takes its room before it is read.
    """

    def __init__(self, app: ASGIApp, settings: Settings, metrics: GatewayMetrics) -> None:
        self._app = app
        self._max_bytes = settings.max_request_bytes
        self._metrics = metrics
        all_bytes = max(settings.max_held_request_bytes, settings.max_request_bytes)
        self._places = SharedPlaces(
            all_bytes,
            what="bytes of request bodies",
            code=TOO_MANY_BYTES,
            num_of_key=max(all_bytes // 2, settings.max_request_bytes),
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        caller: Caller | None = scope.get("state", {}).get("caller")
        # Those who have not signed in yet have one share together.
        body = HeldBody(self._places, "" if caller is None else caller.key_id)
        text = dict(scope["headers"]).get(b"content-length", b"0")
        length = int(text) if text.isdigit() else 0
        try:
            if length > self._max_bytes:
                raise self._too_large
            body.grow_to(length)
        except ApiError as error:
            return await self._refuse(error, scope, receive, send)

        async def send_and_release(message: Message) -> None:
            if message["type"] == "http.response.start":
                body.release()  # whoever answers has read the body, and keeps none of it
            await send(message)

        try:
            return await self._app(scope, self._limited(receive, body), send_and_release)
        finally:
            body.release()

    def _limited(self, receive: Receive, body: HeldBody) -> Receive:
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
            num_bytes += len(message.get("body", b""))
            if num_bytes > self._max_bytes:
                raise self._too_large
            body.grow_to(num_bytes)
            is_complete = not message.get("more_body", False)
            return message

        return limited_receive

    @property
    def _too_large(self) -> ApiError:
        message = f"the request's body is larger than {self._max_bytes} bytes: send a shorter or smaller clip"
        return ApiError(413, "request_too_large", message)

    async def _refuse(self, error: ApiError, scope: Scope, receive: Receive, send: Send) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(DRAIN_S):
                while (await receive()).get("more_body"):
                    pass
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
