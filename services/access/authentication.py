"""Who is let in: one middleware before every route, HTTP and WebSocket alike, that denies what it does not know.

A key comes as `Authorization: Bearer`, as OpenAI's browser subprotocol of a WebSocket, or in the cookie that
`/sign-in` sets; never in an address, which logs would keep.
"""

from __future__ import annotations

import ipaddress
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from services.access.api_keys import Key, Keyring
from services.access.rate_limits import Limits
from services.access.sign_in import COOKIE, SIGN_IN, sign_in_page
from services.gateway.metrics import GatewayMetrics
from services.messages.api_error import ApiError

PUBLIC = {"/healthz", "/readyz", SIGN_IN}  # they tell nothing about cameras
ADMIN = {"/metrics"}
SUBPROTOCOL_KEY = "openai-insecure-api-key."  # what OpenAI's browser clients put before a key
POLICY_VIOLATION = 1008  # WebSocket close code
ENDED = "this API key was revoked, or has ended"
STREAMED = ("http.response.body", "websocket.send")
GONE = {"type": "http.disconnect"}

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks. Without a key it is somebody on this machine, whose gateway is open: all of it is theirs."""

    key: Key | None = None
    limits: Limits | None = None

    def sees(self, camera: str) -> bool:
        """Whether the camera may be seen."""
        return self.key is None or self.key.sees(camera)

    def check_sees(self, camera: str, param: str | None = None) -> None:
        """ApiError 403 when the camera may not be seen, be it there or not."""
        if not self.sees(camera):
            message = f"this key may not see a camera called {camera[:80]!r}"
            raise ApiError(403, "not_your_camera", message, param=param)

    def take(self) -> None:
        """Count a request; ApiError 429 when there were too many."""
        if self.key is not None and self.limits is not None:
            self.limits.take(self.key)


def caller_of(connection: HTTPConnection) -> Caller:
    """Who was let in with this request."""
    return connection.state.caller


class Origins:
    """Browsers let any page call, but say which page it is: only our own and those of the settings may."""

    def __init__(self, app: ASGIApp, *, allowed: frozenset[str], metrics: GatewayMetrics) -> None:
        self._app = app
        self._allowed = allowed
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "lifespan" and not self._is_welcome(Headers(scope=scope)):
            message = "pages of other sites may not call this API: its operator can list them in the settings"
            return await refuse(ApiError(403, "wrong_origin", message), self._metrics, scope, receive, send)
        return await self._app(scope, receive, send)

    def _is_welcome(self, headers: Headers) -> bool:
        origin = headers.get("origin")
        if origin is not None:
            return origin in self._allowed or urlsplit(origin).netloc == headers.get("host")
        # A picture or script of another site's page carries no origin, but this.
        return headers.get("sec-fetch-site") != "cross-site" or headers.get("sec-fetch-mode") == "navigate"


class Doors:
    """Lets in who brings a key (or, where the gateway is open, who is on this machine), within its limits."""

    def __init__(
        self, app: ASGIApp, *, keyring: Keyring | None, limits: Limits, metrics: GatewayMetrics
    ) -> None:
        self._app = app
        self._keyring = keyring  # None: the gateway is open
        self._limits = limits
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope.get("path", "").removeprefix(scope.get("root_path", ""))
        if scope["type"] == "lifespan" or (scope["type"] == "http" and path in PUBLIC):
            return await self._app(scope, receive, send)
        try:
            caller = self._caller(scope, HTTPConnection(scope))
            if path in ADMIN and caller.key is not None and caller.key.role != "admin":
                raise ApiError(403, "not_an_admin", "this needs a key of the role admin")
            caller.take()
        except ApiError as error:
            return await refuse(error, self._metrics, scope, receive, send)
        scope.setdefault("state", {})["caller"] = caller
        if caller.key is None or self._keyring is None:
            return await self._app(scope, receive, send)
        return await self._serve(caller.key, self._keyring, scope, receive, send)

    async def _serve(self, key: Key, keyring: Keyring, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve within the key's places, and only for as long as the key is good."""
        visit = Visit(scope, receive, send, lambda: keyring.holds(key))
        try:
            with self._limits.place(key):
                return await self._app(scope, visit.receive, visit.send)
        except KeyEnded:
            log.info("key %s ended while it was used", key.id)
        except ApiError as error:
            await refuse(error, self._metrics, scope, receive, send)

    def _caller(self, scope: Scope, connection: HTTPConnection) -> Caller:
        if self._keyring is None:
            check_this_machine(scope, connection.headers)
            return Caller()
        text = key_text(connection)
        if text is None:
            raise ApiError(401, "no_api_key", "send an API key: `Authorization: Bearer sc_...`")
        key = self._keyring.find(text)
        if key is None:
            raise ApiError(401, "invalid_api_key", "this API key is not known (any more)")
        if key.has_ended:
            raise ApiError(401, "expired_api_key", "this API key has ended: ask for another")
        return Caller(key, self._limits)


def key_text(connection: HTTPConnection) -> str | None:
    """The key that a request brings; None when it brings none."""
    scheme, _, text = connection.headers.get("authorization", "").partition(" ")
    if scheme:
        return text.strip() if scheme.lower() == "bearer" else ""
    for protocol in connection.scope.get("subprotocols", ()):
        if protocol.startswith(SUBPROTOCOL_KEY):
            return protocol.removeprefix(SUBPROTOCOL_KEY)
    return connection.cookies.get(COOKIE)


def check_this_machine(scope: Scope, headers: Headers) -> None:
    """ApiError 403 for a caller from elsewhere, or one whose name for us a foreign page may have made up."""
    client = (scope.get("client") or ("",))[0]
    host = urlsplit(f"//{headers.get('host', '')}").hostname or ""
    if not (is_loopback(client) and (host == "localhost" or is_loopback(host))):
        message = (
            "this gateway is open, and so serves the programs of its own machine alone: "
            "with API keys (`streamchat keys make`, STREAMCHAT_KEYS_FILE) it serves others"
        )
        raise ApiError(403, "not_this_machine", message)


def is_loopback(address: str) -> bool:
    """Whether it is an address of this machine for itself."""
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False


class KeyEnded(RuntimeError):
    """The key of an open connection was revoked, or its time is over."""


class Visit:
    """A connection that is served only while its key is good: streams and sockets last long."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, is_good: Callable[[], bool]) -> None:
        self._socket = scope["type"] == "websocket"
        self._receive, self._send, self._is_good = receive, send, is_good
        self._lasts = self._socket
        self._last_words = b""

    async def receive(self) -> Message:
        """The next message, or that the caller is gone."""
        message = await self._receive()
        if self._is_good():
            return message
        if self._socket:
            await self._close_socket()
        return {"type": "websocket.disconnect", "code": POLICY_VIOLATION} if self._socket else GONE

    async def send(self, message: Message) -> None:
        """Send, or end a stream and raise KeyEnded. What is not streamed leaves whole."""
        if message["type"] == "http.response.start":
            headers = Headers(raw=message.get("headers", ()))
            self._lasts = "content-length" not in headers
            if headers.get("content-type", "").startswith("text/event-stream"):
                self._last_words = ApiError(401, "invalid_api_key", ENDED).event().encode()
        if not self._lasts or message["type"] not in STREAMED or self._is_good():
            return await self._send(message)
        if self._socket:
            await self._close_socket()
        else:
            await self._send({"type": "http.response.body", "body": self._last_words, "more_body": False})
        raise KeyEnded

    async def _close_socket(self) -> None:
        await self._send({"type": "websocket.close", "code": POLICY_VIOLATION, "reason": ENDED})


async def refuse(
    error: ApiError, metrics: GatewayMetrics, scope: Scope, receive: Receive, send: Send
) -> None:
    """Answer with the error: as a page to people who have no key yet, and before a WebSocket is accepted."""
    metrics.failed(error.code, error.status)
    headers = {"WWW-Authenticate": 'Bearer realm="streamchat"'} if error.status == 401 else {}
    if scope["type"] == "websocket" and "websocket.http.response" not in scope.get("extensions", {}):
        return await send({"type": "websocket.close", "code": POLICY_VIOLATION, "reason": error.code})
    wants_page = scope["type"] == "http" and "text/html" in Headers(scope=scope).get("accept", "")
    if error.status == 401 and wants_page and scope["method"] == "GET":
        response: Callable[[Scope, Receive, Send], Awaitable[Any]] = sign_in_page(401)
    else:
        response = error.response(headers)
    return await response(scope, receive, send)
