"""Which web pages may call the API: our own, and those of the sites in the settings."""

from __future__ import annotations

from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from services.access.error_response import RecordError, send_error
from services.messages.api_error import ApiError


class OriginMiddleware:
    """Refuses requests of other sites' pages. A browser sends them, but says which site they come from."""

    def __init__(self, app: ASGIApp, *, allowed: frozenset[str], record_error: RecordError) -> None:
        self._app = app
        self._allowed = allowed
        self._record_error = record_error

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "lifespan" and not self._is_allowed(Headers(scope=scope)):
            message = "pages of other sites may not call this API: its operator can list them in the settings"
            error = ApiError(403, "wrong_origin", message)
            return await send_error(error, self._record_error, scope, receive, send)
        return await self._app(scope, receive, send)

    def _is_allowed(self, headers: Headers) -> bool:
        origin = headers.get("origin")
        if origin is not None:
            return origin in self._allowed or urlsplit(origin).netloc == headers.get("host")
        # A request for a picture or script in another site's page has no Origin header, but it has this one.
        return headers.get("sec-fetch-site") != "cross-site" or headers.get("sec-fetch-mode") == "navigate"
