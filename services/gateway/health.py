"""`/healthz`, `/readyz` and `/metrics`."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Literal

from fastapi import APIRouter
from pydantic import BaseModel
from starlette.responses import Response

from services.gateway.question_service import QuestionService
from services.messages.api_error import ApiError, ErrorBody
from services.ports.recorder import CONTENT_TYPE

READY_TIMEOUT_S = 3.0
READY_LASTS_S = 1.0  # anyone may ask: the store and a decoder are asked at most this often

log = logging.getLogger(__name__)


class Health(BaseModel):
    """How the gateway is."""

    status: Literal["ok", "ready"]


class Readiness:
    """Whether questions can be answered, checked once for all who ask at about the same time."""

    def __init__(
        self, questions: QuestionService, check_decoder: Callable[[], Awaitable[None]] | None
    ) -> None:
        self._questions, self._check_decoder = questions, check_decoder
        self._lock = asyncio.Lock()
        self._checked_s = float("-inf")
        self._error: ApiError | None = None

    async def check(self) -> None:
        """Raises ApiError 503 if the store or every decoder cannot be reached."""
        async with self._lock:
            if time.monotonic() - self._checked_s >= READY_LASTS_S:
                self._error = await self._find_error()
                self._checked_s = time.monotonic()
        if self._error is not None:
            raise self._error

    async def _find_error(self) -> ApiError | None:
        try:
            async with asyncio.timeout(READY_TIMEOUT_S):
                await self._questions.store.call(lambda store: store.ping())
                if self._check_decoder is not None:
                    await self._check_decoder()
        except ApiError as error:
            return error
        except Exception as error:
            log.warning("not ready: %r", error)
            return ApiError(503, "not_ready", "no decoder can be reached yet", retry_after_s=1)
        return None


def health_routes(
    questions: QuestionService, check_decoder: Callable[[], Awaitable[None]] | None
) -> APIRouter:
    """The routes. `check_decoder` raises while no decoder can be reached."""
    router = APIRouter(tags=["Health"])
    readiness = Readiness(questions, check_decoder)

    @router.get("/healthz")
    async def healthz() -> Health:
        """The process is alive."""
        return Health(status="ok")

    @router.get("/readyz", responses={503: {"model": ErrorBody}})
    async def readyz() -> Health:
        """Questions can be answered: the store answers, and a decoder is there."""
        await readiness.check()
        return Health(status="ready")

    @router.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
    async def metrics() -> Response:
        """Counts and times of all services, for Prometheus; of this process alone where Ray does not run."""
        return Response(await questions.metrics.recorder.exposition(), headers={"Content-Type": CONTENT_TYPE})

    _ = (healthz, readyz, metrics)
    return router
