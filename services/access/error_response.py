"""Answers a request with an error before it reaches a route, over HTTP or WebSocket."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from starlette.datastructures import Headers
from starlette.types import Receive, Scope, Send

from services.access.sign_in import sign_in_page
from services.messages.api_error import ApiError

POLICY_VIOLATION = 1008  # WebSocket close code

RecordError = Callable[[str, int], None]  # counts an error by its code and HTTP status


async def send_error(
    error: ApiError, record_error: RecordError, scope: Scope, receive: Receive, send: Send
) -> None:
    """Send the error and count it. A browser without a key gets the sign-in page; a WebSocket is not accepted."""
    record_error(error.code, error.status)
    headers = {"WWW-Authenticate": 'Bearer realm="streamchat"'} if error.status == 401 else {}
    if scope["type"] == "websocket" and "websocket.http.response" not in scope.get("extensions", {}):
        return await send({"type": "websocket.close", "code": POLICY_VIOLATION, "reason": error.code})
    wants_page = scope["type"] == "http" and "text/html" in Headers(scope=scope).get("accept", "")
    if error.status == 401 and wants_page and scope["method"] == "GET":
        response: Callable[[Scope, Receive, Send], Awaitable[Any]] = sign_in_page(401)
    else:
        response = error.response(headers)
    return await response(scope, receive, send)
