"""`/healthz`, `/readyz` and `/metrics`."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Literal

from fastapi import APIRouter
from pydantic import BaseModel
from starlette.responses import Response

from services.gateway.question_service import QuestionService
from services.messages.api_error import ApiError, ErrorBody
from services.ports.recorder import CONTENT_TYPE

READY_TIMEOUT_S = 3.0

log = logging.getLogger(__name__)


class Health(BaseModel):
    """How the gateway is."""

    status: Literal["ok", "ready"]


def health_routes(
    questions: QuestionService, check_decoder: Callable[[], Awaitable[None]] | None
) -> APIRouter:
    """The routes. `check_decoder` raises while no decoder can be reached."""
    router = APIRouter(tags=["Health"])

    @router.get("/healthz")
    async def healthz() -> Health:
        """The process is alive."""
        return Health(status="ok")

    @router.get("/readyz", responses={503: {"model": ErrorBody}})
    async def readyz() -> Health:
        """Questions can be answered: the store answers, and a decoder is there."""
        try:
            async with asyncio.timeout(READY_TIMEOUT_S):
                await questions.store.call(lambda store: store.ping())
                if check_decoder is not None:
                    await check_decoder()
        except ApiError:
            raise
        except Exception as error:
            log.warning("not ready: %r", error)
            message = "no decoder can be reached yet"
            raise ApiError(503, "not_ready", message, retry_after_s=1) from error
        return Health(status="ready")

    @router.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
    async def metrics() -> Response:
        """Counts and times of all services, for Prometheus; of this process alone where Ray does not run."""
        return Response(await questions.metrics.recorder.exposition(), headers={"Content-Type": CONTENT_TYPE})

    _ = (healthz, readyz, metrics)
    return router
