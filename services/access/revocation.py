"""Closes streams and WebSockets whose key is revoked or expires while they are open."""

from __future__ import annotations

from collections.abc import Callable

from starlette.datastructures import Headers
from starlette.types import Message, Receive, Scope, Send

from services.access.error_response import POLICY_VIOLATION
from services.messages.api_error import ApiError

REASON = "this API key was revoked, or has ended"
CONTENT_MESSAGES = ("http.response.body", "websocket.send")
HTTP_DISCONNECT = {"type": "http.disconnect"}
WEBSOCKET_DISCONNECT = {"type": "websocket.disconnect", "code": POLICY_VIOLATION}


class KeyRevoked(RuntimeError):
    """The key of an open connection was revoked, or has expired."""


class RevocableConnection:
    """The receive and send of one connection. They stop working when its key is no longer valid."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, is_valid: Callable[[], bool]) -> None:
        self._is_websocket = scope["type"] == "websocket"
        self._receive, self._send, self._is_valid = receive, send, is_valid
        self._is_stream = self._is_websocket
        self._last_event = b""  # tells the reader of a server-sent event stream why it ends

    async def receive(self) -> Message:
        """The next message; a disconnect if the key is no longer valid."""
        message = await self._receive()
        if self._is_valid():
            return message
        if self._is_websocket:
            await self._close_websocket()
        return WEBSOCKET_DISCONNECT if self._is_websocket else HTTP_DISCONNECT

    async def send(self, message: Message) -> None:
        """Send a message. If the key is no longer valid, end the stream and raise KeyRevoked.

        A response of known length is always sent completely.
        """
        if message["type"] == "http.response.start":
            headers = Headers(raw=message.get("headers", ()))
            self._is_stream = "content-length" not in headers
            if headers.get("content-type", "").startswith("text/event-stream"):
                self._last_event = ApiError(401, "invalid_api_key", REASON).event().encode()
        if not self._is_stream or message["type"] not in CONTENT_MESSAGES or self._is_valid():
            return await self._send(message)
        if self._is_websocket:
            await self._close_websocket()
        else:
            await self._send({"type": "http.response.body", "body": self._last_event, "more_body": False})
        raise KeyRevoked

    async def _close_websocket(self) -> None:
        await self._send({"type": "websocket.close", "code": POLICY_VIOLATION, "reason": REASON})
