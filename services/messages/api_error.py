"""Errors in the format of OpenAI's API, for HTTP, server-sent events and WebSocket."""

from __future__ import annotations

import json
import math

from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field

ERROR_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "invalid_request_error",
    405: "invalid_request_error",
    409: "conflict_error",
    410: "invalid_request_error",
    413: "invalid_request_error",
    429: "rate_limit_error",
}


class ErrorDetail(BaseModel):
    """What was received, what is expected, and in which field."""

    message: str = Field(description="what was got and what is wanted")
    type: str = Field(description="such as invalid_request_error, rate_limit_error or server_error")
    param: str | None = Field(description="path of the field in the request that is at fault")
    code: str | None = Field(description="short and stable name of the error, for programs")


class ErrorBody(BaseModel):
    """Body of every response with status 400 or more, and of the last event of a stream that failed."""

    error: ErrorDetail


class ApiError(Exception):
    """A request that cannot be served. `message` says what was received and what is expected."""

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        param: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(status, code, message)
        self.status = status
        self.code = code
        self.message = message
        self.param = param
        self.retry_after_s = 1.0 if status == 429 and retry_after_s is None else retry_after_s

    @property
    def body(self) -> ErrorBody:
        """The error in OpenAI's format."""
        error_type = ERROR_TYPES.get(self.status, "server_error")
        detail = ErrorDetail(message=self.message, type=error_type, param=self.param, code=self.code)
        return ErrorBody(error=detail)

    @property
    def headers(self) -> dict[str, str]:
        """`Retry-After` in seconds, rounded up, if waiting helps."""
        if self.retry_after_s is None:
            return {}
        return {"Retry-After": str(max(1, math.ceil(self.retry_after_s)))}

    def response(self, extra_headers: dict[str, str] | None = None) -> JSONResponse:
        """The error as an HTTP response."""
        headers = {"Cache-Control": "no-store", **self.headers, **(extra_headers or {})}
        return JSONResponse(self.body.model_dump(), self.status, headers)

    def event(self) -> str:
        """The error as the last server-sent event of a stream."""
        return f"data: {json.dumps(self.body.model_dump())}\n\n"
