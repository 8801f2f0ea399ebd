"""Sends every error in OpenAI's format, and counts it."""

from __future__ import annotations

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.responses import Response

from services.gateway.metrics import GatewayMetrics
from services.gateway.middleware import TOO_MANY_BYTES
from services.messages.api_error import ApiError


def add_error_handlers(app: FastAPI, metrics: GatewayMetrics) -> None:
    """Handle our own errors, those of FastAPI and Starlette, and exceptions that nobody caught."""

    def error_response(error: ApiError, headers: dict[str, str] | None = None) -> JSONResponse:
        metrics.record_error(error.code, error.status)
        return error.response(headers)

    async def on_api_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, ApiError)
        is_unread = error.status in (408, 413) or error.code == TOO_MANY_BYTES  # the rest of the body
        return error_response(error, {"Connection": "close"} if is_unread else None)

    async def on_http_exception(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        codes = {404: "unknown_route", 405: "wrong_method"}
        messages = {404: f"nothing is at {request.url.path[:200]}: GET /docs lists what is"}
        messages[405] = f"{request.method} is not what {request.url.path[:200]} takes"
        message = messages.get(error.status_code, str(error.detail))
        code = codes.get(error.status_code, "http_error")
        headers = dict(error.headers or {})
        if "GET" in headers.get("Allow", ""):
            headers["Allow"] += ", HEAD"  # answered by the middleware
        return error_response(ApiError(error.status_code, code, message), headers)

    async def on_validation_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        first = error.errors()[0]
        path = ".".join(str(part) for part in first["loc"])
        return error_response(ApiError(400, "invalid_option", f"{path}: {first['msg']}"[:300], param=path))

    async def on_exception(request: Request, error: Exception) -> Response:
        return error_response(ApiError(500, "internal_error", "the gateway failed: its log says more"))

    app.add_exception_handler(ApiError, on_api_error)
    app.add_exception_handler(HTTPException, on_http_exception)
    app.add_exception_handler(RequestValidationError, on_validation_error)
    app.add_exception_handler(Exception, on_exception)
