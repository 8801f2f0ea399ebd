"""Authentication: one middleware in front of every route, for HTTP and WebSocket.

A key is sent as `Authorization: Bearer`, in the WebSocket subprotocol that OpenAI's browser clients use, or in the
cookie that `/sign-in` sets. It is never accepted in a URL, because URLs end up in logs.
"""

from __future__ import annotations

import ipaddress
import logging
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Receive, Scope, Send

from services.access.api_keys import ApiKey, ApiKeys
from services.access.caller import Caller
from services.access.error_response import RecordError, send_error
from services.access.rate_limits import RateLimits
from services.access.revocation import KeyRevoked, RevocableConnection
from services.access.sign_in import COOKIE, SIGN_IN_PATH
from services.messages.api_error import ApiError

PUBLIC_PATHS = {"/healthz", "/readyz", SIGN_IN_PATH}  # they reveal nothing about cameras
ADMIN_PATHS = {"/metrics"}
KEY_SUBPROTOCOL = "openai-insecure-api-key."  # the prefix of a key among the WebSocket subprotocols

log = logging.getLogger(__name__)


class AuthenticationMiddleware:
    """Admits requests with a valid key, within its limits. An open gateway admits requests of this machine."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        api_keys: ApiKeys | None,
        limits: RateLimits,
        record_error: RecordError,
    ) -> None:
        self._app = app
        self._api_keys = api_keys  # None: the gateway is open
        self._limits = limits
        self._record_error = record_error

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope.get("path", "").removeprefix(scope.get("root_path", ""))
        if scope["type"] == "lifespan" or (scope["type"] == "http" and path in PUBLIC_PATHS):
            return await self._app(scope, receive, send)
        try:
            caller = self._authenticate(scope, HTTPConnection(scope))
            if path in ADMIN_PATHS and caller.key is not None and caller.key.role != "admin":
                raise ApiError(403, "not_an_admin", "this needs a key of the role admin")
            await caller.count_request()
        except ApiError as error:
            return await send_error(error, self._record_error, scope, receive, send)
        scope.setdefault("state", {})["caller"] = caller
        if caller.key is None or self._api_keys is None:
            return await self._app(scope, receive, send)
        return await self._serve(caller.key, self._api_keys, scope, receive, send)

    async def _serve(
        self, key: ApiKey, api_keys: ApiKeys, scope: Scope, receive: Receive, send: Send
    ) -> None:
        """Serve within the key's limit of open requests, for as long as the key is valid."""
        connection = RevocableConnection(scope, receive, send, lambda: api_keys.is_valid(key))
        try:
            with self._limits.open_request(key):
                return await self._app(scope, connection.receive, connection.send)
        except KeyRevoked:
            log.info("connection closed: key %s was revoked or has expired", key.id)
        except ApiError as error:
            await send_error(error, self._record_error, scope, receive, send)

    def _authenticate(self, scope: Scope, connection: HTTPConnection) -> Caller:
        if self._api_keys is None:
            check_this_machine(scope, connection.headers)
            return Caller()
        text = key_text(connection)
        if text is None:
            raise ApiError(401, "no_api_key", "send an API key: `Authorization: Bearer sc_...`")
        key = self._api_keys.find(text)
        if key is None:
            raise ApiError(401, "invalid_api_key", "this API key is not known (any more)")
        if key.has_expired:
            raise ApiError(401, "expired_api_key", "this API key has ended: ask for another")
        return Caller(key, self._limits)


def key_text(connection: HTTPConnection) -> str | None:
    """The key that was sent with the request; None if there is none."""
    scheme, _, text = connection.headers.get("authorization", "").partition(" ")
    if scheme:
        return text.strip() if scheme.lower() == "bearer" else ""
    for protocol in connection.scope.get("subprotocols", ()):
        if protocol.startswith(KEY_SUBPROTOCOL):
            return protocol.removeprefix(KEY_SUBPROTOCOL)
    return connection.cookies.get(COOKIE)


def check_this_machine(scope: Scope, headers: Headers) -> None:
    """Raises ApiError 403 unless client address and Host header are this machine's.

    The Host header matters because a foreign web page can point a host name of its own at this machine.
    """
    client = (scope.get("client") or ("",))[0]
    host = urlsplit(f"//{headers.get('host', '')}").hostname or ""
    if not (is_loopback(client) and (host == "localhost" or is_loopback(host))):
        message = (
            "this gateway is open, and so serves the programs of its own machine alone: "
            "with API keys (`streamchat keys make`, STREAMCHAT_KEYS_FILE) it serves others"
        )
        raise ApiError(403, "not_this_machine", message)


def is_loopback(address: str) -> bool:
    """Whether it is a loopback IP address."""
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False
