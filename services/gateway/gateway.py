"""The gateway: one FastAPI app, built from its parts. It imports neither torch nor Ray nor a Redis client."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from limits.aio.storage import Storage
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response

from services.access.api_keys import ApiKeys
from services.access.authentication import AuthenticationMiddleware
from services.access.origins import OriginMiddleware
from services.access.rate_limits import RateLimits
from services.access.sign_in import sign_in_routes
from services.gateway.answer import Decode
from services.gateway.api_document import api_document, docs_page
from services.gateway.cameras import camera_routes
from services.gateway.chat.endpoint import chat_routes
from services.gateway.chat.resumable_stream import ResumableStreams
from services.gateway.error_handlers import add_error_handlers
from services.gateway.health import health_routes
from services.gateway.metrics import GatewayMetrics
from services.gateway.middleware import BodyLimitMiddleware, HeadMiddleware, SecurityHeadersMiddleware
from services.gateway.picture_feed import PictureFeed
from services.gateway.question_service import PlayClip, QuestionService
from services.gateway.realtime.session import realtime_routes
from services.page.routes import page_routes
from services.ports.frame_store import FrameStore
from services.ports.metric_catalogue import BUILD_INFO
from services.ports.recorder import MetricsRecorder
from services.settings import Settings

VERSION = "0.1.0"


def add_access_control(
    app: FastAPI, settings: Settings, metrics: GatewayMetrics, rate_limit_storage: Storage | None
) -> None:
    """Check every request before its route: first the origin of the page that sends it, then the API key."""
    api_keys = None
    if settings.access != "open":
        api_keys = ApiKeys(Path(settings.keys_file) if settings.keys_file else None)
        app.include_router(sign_in_routes(api_keys))
    limits = RateLimits(settings, rate_limit_storage, metrics.record_rate_limit_fallback)
    app.add_middleware(
        AuthenticationMiddleware, api_keys=api_keys, limits=limits, record_error=metrics.record_error
    )
    allowed = frozenset(origin.strip() for origin in settings.origins_allowed.split(",") if origin.strip())
    if allowed:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=sorted(allowed),
            allow_methods=["GET", "HEAD", "POST"],
            allow_headers=["*"],  # official clients send many of their own: x-stainless-*, openai-*, ...
            expose_headers=[
                "X-Request-Id",
                "X-Frame-Id",
                "X-Captured-S",
                "X-Ignored-Parameters",
                "Retry-After",
            ],
        )
    app.add_middleware(OriginMiddleware, allowed=allowed, record_error=metrics.record_error)


def add_api_document(app: FastAPI) -> None:
    """Serve `/openapi.json` with what FastAPI cannot see, and `/docs`."""

    @app.get("/docs", include_in_schema=False)
    async def docs() -> Response:
        return docs_page(app.openapi())

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = api_document(app)
        return app.openapi_schema

    app.openapi = openapi
    _ = docs


def make_app(
    settings: Settings,
    model_name: str,
    store: FrameStore,
    decode: Decode,
    play_clip: PlayClip,
    check_decoder: Callable[[], Awaitable[None]] | None = None,
    recorder: MetricsRecorder | None = None,
    rate_limit_storage: Storage | None = None,
) -> FastAPI:
    """Build the app. The caller keeps the store and closes it.

    `check_decoder` raises while no decoder can be reached. Without a `rate_limit_storage`, requests are counted in
    this process.
    """
    metrics = GatewayMetrics(recorder)
    metrics.recorder.set(BUILD_INFO, 1, VERSION, model_name)
    questions = QuestionService(settings, model_name, store, decode, play_clip, metrics)
    streams = ResumableStreams()
    feed = PictureFeed(questions.store, metrics)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncGenerator[None]:
        yield
        await feed.close()
        await streams.close()
        questions.close()

    app = FastAPI(
        title="StreamChat",
        description="Talk with live cameras: the answer follows the video while it is being spoken.",
        version=VERSION,
        lifespan=lifespan,
        docs_url=None,  # FastAPI's own pages load their scripts from other sites
        redoc_url=None,
        separate_input_output_schemas=False,
    )
    add_error_handlers(app, metrics)
    app.include_router(chat_routes(questions, streams))
    app.include_router(camera_routes(questions, feed))
    app.include_router(realtime_routes(questions))
    app.include_router(page_routes())
    app.include_router(health_routes(questions, check_decoder))
    app.add_middleware(BodyLimitMiddleware, settings=settings, metrics=metrics)
    add_access_control(app, settings, metrics, rate_limit_storage)
    app.add_middleware(SecurityHeadersMiddleware)
    app.add_middleware(HeadMiddleware)
    add_api_document(app)
    return app
