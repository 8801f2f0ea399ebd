"""The gateway: one FastAPI app from plain parts. It imports no torch, no Ray and no store's client."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, Literal

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from services.access.api_keys import Keyring
from services.access.authentication import Doors, Origins
from services.access.rate_limits import Limits
from services.access.sign_in import sign_in
from services.gateway.answer import Decode
from services.gateway.api_document import api_document, docs_page
from services.gateway.cameras import camera_api
from services.gateway.chat.endpoint import openai_api
from services.gateway.metrics import GatewayMetrics
from services.gateway.picture_feed import PictureFeed
from services.gateway.question_service import Desk, PlayClip
from services.gateway.realtime.session import realtime_api
from services.messages.api_error import ApiError, ErrorBody
from services.page.routes import page_files
from services.ports.frame_store import FrameStore
from services.ports.metric_catalogue import BUILD_INFO
from services.ports.recorder import CONTENT_TYPE, MetricsRecorder
from services.settings import Settings

VERSION = "0.1.0"
READY_TIMEOUT_S = 3.0
BODY_S = 60.0  # a body that takes longer to come holds a place for nothing
DRAIN_S = 5.0  # a body that is too large is read and thrown away for this long, so its sender sees the answer

log = logging.getLogger(__name__)


class Health(BaseModel):
    """How the gateway is."""

    status: Literal["ok", "ready"]


class BodyLimit:
    """Answers 413 to a body that is larger than allowed, without keeping what was sent of it; 408 to one too slow."""

    def __init__(self, app: ASGIApp, max_bytes: int, metrics: GatewayMetrics) -> None:
        self._app = app
        self._max_bytes = max_bytes
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        length = dict(scope["headers"]).get(b"content-length", b"0")
        if length.isdigit() and int(length) > self._max_bytes:
            return await self._refuse(scope, receive, send)
        num_bytes, whole = 0, False
        ends_at = asyncio.get_running_loop().time() + BODY_S

        async def counted() -> Message:
            nonlocal num_bytes, whole
            try:
                async with asyncio.timeout_at(None if whole else ends_at):
                    message = await receive()
            except TimeoutError as error:
                raise ApiError(
                    408, "request_too_slow", f"no whole body came within {BODY_S:.0f} s"
                ) from error
            whole = not message.get("more_body", False)
            num_bytes += len(message.get("body", b""))
            if num_bytes > self._max_bytes:
                raise ApiError(413, "request_too_large", self._message)
            return message

        return await self._app(scope, counted, send)

    @property
    def _message(self) -> str:
        return f"the request's body is larger than {self._max_bytes} bytes: send a shorter or smaller clip"

    async def _refuse(self, scope: Scope, receive: Receive, send: Send) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(DRAIN_S):
                while (await receive()).get("more_body"):
                    pass
        error = ApiError(413, "request_too_large", self._message)
        self._metrics.failed(error.code, error.status)
        await error.response({"Connection": "close"})(scope, receive, send)


class SecurityHeaders:
    """On every response: nothing is loaded from elsewhere, framed, or guessed."""

    HEADERS = (
        (b"x-content-type-options", b"nosniff"),
        (b"x-frame-options", b"DENY"),
        (b"referrer-policy", b"same-origin"),  # with none at all, a browser signs in with `Origin: null`
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
        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = message.get("headers", [])
                own = {name for name, _ in headers}  # a page may have a policy of its own
                ours = [header for header in self.HEADERS if header[0] not in own]
                message = {**message, "headers": [*headers, *ours]}
            await send(message)

        await self._app(scope, receive, with_headers if scope["type"] == "http" else send)


def add_error_handlers(app: FastAPI, desk: Desk) -> None:
    """Every error leaves in OpenAI's shape and is counted."""

    def answered(error: ApiError, headers: dict[str, str] | None = None) -> JSONResponse:
        desk.metrics.failed(error.code, error.status)
        return error.response(headers)

    async def api_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, ApiError)
        return answered(error, {"Connection": "close"} if error.status in (408, 413) else None)

    async def http_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        codes = {404: "unknown_route", 405: "wrong_method"}
        messages = {404: f"nothing is at {request.url.path[:200]}: GET /docs lists what is"}
        messages[405] = f"{request.method} is not what {request.url.path[:200]} takes"
        message = messages.get(error.status_code, str(error.detail))
        code = codes.get(error.status_code, "http_error")
        return answered(ApiError(error.status_code, code, message), dict(error.headers or {}))

    async def invalid(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        first = error.errors()[0]
        path = ".".join(str(part) for part in first["loc"])
        return answered(ApiError(400, "invalid_option", f"{path}: {first['msg']}"[:300], param=path))

    async def crashed(request: Request, error: Exception) -> Response:
        return answered(ApiError(500, "internal_error", "the gateway failed: its log says more"))

    app.add_exception_handler(ApiError, api_error)
    app.add_exception_handler(HTTPException, http_error)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(Exception, crashed)


def add_health(app: FastAPI, desk: Desk, ready: Callable[[], Awaitable[None]] | None) -> None:
    """`/healthz`, `/readyz`, `/metrics`."""

    @app.get("/healthz", tags=["Health"])
    async def healthz() -> Health:
        """The process is alive."""
        return Health(status="ok")

    @app.get("/readyz", tags=["Health"], responses={503: {"model": ErrorBody}})
    async def readyz() -> Health:
        """Questions can be answered: the store answers, and a decoder is there."""
        try:
            async with asyncio.timeout(READY_TIMEOUT_S):
                await desk.store.ask(lambda store: store.ping())
                if ready is not None:
                    await ready()
        except ApiError:
            raise
        except Exception as error:
            log.warning("not ready: %r", error)
            message = "no decoder can be reached yet"
            raise ApiError(503, "not_ready", message, retry_after_s=1) from error
        return Health(status="ready")

    @app.get(
        "/metrics", tags=["Health"], response_class=Response, responses={200: {"content": {"text/plain": {}}}}
    )
    async def metrics() -> Response:
        """Counts and times of all services, for Prometheus; of this process alone where Ray does not run."""
        return Response(await desk.metrics.recorder.exposition(), headers={"Content-Type": CONTENT_TYPE})

    _ = (healthz, readyz, metrics)


def add_doors(app: FastAPI, desk: Desk) -> None:
    """Whoever comes passes these before any route: first the page's origin, then the key."""
    settings = desk.settings
    keyring = None
    if settings.access != "open":
        keyring = Keyring(Path(settings.keys_file) if settings.keys_file else None)
        app.include_router(sign_in(keyring))
    app.add_middleware(Doors, keyring=keyring, limits=Limits(settings), metrics=desk.metrics)
    allowed = frozenset(origin.strip() for origin in settings.origins_allowed.split(",") if origin.strip())
    if allowed:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=sorted(allowed),
            allow_methods=["GET", "POST"],
            allow_headers=["Authorization", "Content-Type"],
            expose_headers=["X-Request-Id", "X-Frame-Id", "X-Captured-S", "Retry-After"],
        )
    app.add_middleware(Origins, allowed=allowed, metrics=desk.metrics)


def make_app(
    settings: Settings,
    model_name: str,
    store: FrameStore,
    decode: Decode,
    play_clip: PlayClip,
    ready: Callable[[], Awaitable[None]] | None = None,
    recorder: MetricsRecorder | None = None,
) -> FastAPI:
    """The app. `ready` raises while no question could be answered. The store stays its maker's to close."""
    desk = Desk(settings, model_name, store, decode, play_clip, GatewayMetrics(recorder))
    desk.metrics.recorder.set(BUILD_INFO, 1, VERSION, model_name)
    feed = PictureFeed(desk.store, desk.metrics)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncGenerator[None]:
        yield
        await feed.close()
        desk.close()

    app = FastAPI(
        title="StreamChat",
        description="Talk with live cameras: the answer follows the video while it is being spoken.",
        version=VERSION,
        lifespan=lifespan,
        docs_url=None,  # FastAPI's own pages load their scripts from elsewhere
        redoc_url=None,
        separate_input_output_schemas=False,
    )
    add_error_handlers(app, desk)
    app.include_router(openai_api(desk))
    app.include_router(camera_api(desk, feed))
    app.include_router(realtime_api(desk))
    app.include_router(page_files())
    add_health(app, desk, ready)
    app.add_middleware(BodyLimit, max_bytes=settings.max_request_bytes, metrics=desk.metrics)
    add_doors(app, desk)
    app.add_middleware(SecurityHeaders)

    @app.get("/docs", include_in_schema=False)
    async def docs() -> Response:
        return docs_page(app.openapi())

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = api_document(app)
        return app.openapi_schema

    app.openapi = openapi
    _ = docs
    return app
