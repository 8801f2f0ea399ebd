"""`POST /v1/chat/completions` and `GET /v1/models`, so that any OpenAI client can talk with a camera."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from typing import Any, Literal

from fastapi import APIRouter, Request
from pydantic import BaseModel
from pydantic_core import to_json
from starlette.responses import JSONResponse, Response

from services.access.authentication import Caller, caller_of
from services.gateway.answer import Answer
from services.gateway.chat.question import Question, question
from services.gateway.chat.reply import ChatCompletion, ChatCompletionChunk, Reply, usage_of
from services.gateway.chat.request import ChatRequest, decoded_json, parsed
from services.gateway.open_stream import ClientGone, OpenStream, unless_gone
from services.gateway.question_service import Desk
from services.messages.api_error import ApiError, ErrorBody

KEEP_ALIVE_S = 15.0  # a comment this often while no word comes, so that proxies keep the stream
LARGE_BODY_BYTES = 2**18  # parsed in a thread from here on: the event loop has others to serve

ERRORS: dict[int | str, dict[str, Any]] = {
    400: {"model": ErrorBody, "description": "Something in the request is wrong; `param` says where"},
    404: {"model": ErrorBody, "description": "No such model or camera"},
    409: {"model": ErrorBody, "description": "The camera has no frame yet"},
    413: {"model": ErrorBody, "description": "The request is too large"},
    429: {"model": ErrorBody, "description": "All places are taken; `Retry-After` says when to ask again"},
    503: {"model": ErrorBody, "description": "The decoder was lost, or a service cannot be reached"},
}


class Model(BaseModel):
    """OpenAI's."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "streamchat"


class ModelList(BaseModel):
    """The one model that this gateway serves."""

    object: Literal["list"] = "list"
    data: list[Model]


async def body_of(request: Request) -> Any:
    """The request's JSON; raises ApiError 400. Its size was bounded before."""
    kind = request.headers.get("content-type", "").split(";")[0].strip().lower()
    if kind != "application/json":
        raise ApiError(
            400, "invalid_content_type", f"got content-type {kind[:80]!r}, wanted application/json"
        )
    body = await request.body()
    if len(body) < LARGE_BODY_BYTES:
        return decoded_json(body)
    return await asyncio.to_thread(decoded_json, body)


async def server_sent_events(
    desk: Desk, answer: Answer, reply: Reply, *, include_usage: bool
) -> AsyncGenerator[bytes, None]:
    """The whole stream, to `[DONE]` or to a last event with the error: never a silent end."""

    def event(chunk: ChatCompletionChunk) -> bytes:
        data = chunk.model_dump(exclude_unset=True)
        data["object"] = chunk.object
        if include_usage:
            data.setdefault("usage", None)
        return b"data: " + to_json(data) + b"\n\n"

    try:
        yield event(reply.chunk(role="assistant"))
        while True:
            try:
                tokens = await answer.next_tokens(KEEP_ALIVE_S)
            except TimeoutError:
                yield b": still here\n\n"
                continue
            if tokens is None:
                break
            yield event(reply.chunk(tokens=tokens))
        assert answer.ended is not None
        yield event(reply.chunk(finish_reason=answer.ended.finish_reason))
        if include_usage:
            yield event(reply.usage_chunk(usage_of(answer)))
        yield b"data: [DONE]\n\n"
    except ApiError as error:
        desk.metrics.failed(error.code, error.status)
        yield error.event().encode()


async def whole(answer: Answer, reply: Reply) -> ChatCompletion:
    """Wait for the answer's end; raises ApiError when it failed."""
    while await answer.next_tokens() is not None:
        pass
    assert answer.ended is not None
    usage = usage_of(answer)
    return reply.completion(answer.tokens, answer.ended.finish_reason, usage)


async def ask(desk: Desk, caller: Caller, chat: ChatRequest) -> tuple[Question, Answer]:
    """Check the question and start its answer; raises ApiError before anything is sent."""
    asked = await question(desk, caller, chat)
    return asked, await desk.ask(asked.request)


def openai_api(desk: Desk) -> APIRouter:
    """The routes."""
    router = APIRouter(prefix="/v1", tags=["OpenAI"])
    model = Model(id=desk.model_name, created=int(time.time()))

    @router.post(
        "/chat/completions",
        response_model=ChatCompletion,
        responses={
            **ERRORS,
            200: {
                "description": "The answer; with `stream` as server-sent events of ChatCompletionChunk",
                "content": {
                    "text/event-stream": {"schema": {"$ref": "#/components/schemas/ChatCompletionChunk"}}
                },
            },
        },
        openapi_extra={
            "requestBody": {
                "required": True,
                "content": {"application/json": {"schema": {"$ref": "#/components/schemas/ChatRequest"}}},
            }
        },
    )
    async def create_chat_completion(request: Request) -> Response:
        """Ask about a camera, live. Words are made while the video goes on, each from the newest frame."""
        chat = parsed(await body_of(request))
        try:
            asked, answer = await unless_gone(request, ask(desk, caller_of(request), chat))
            reply = Reply(asked.request, desk.model_name, asked.clip)
            headers = {"X-Request-Id": asked.request.request_id}
            if chat.stream:
                include_usage = bool(chat.stream_options and chat.stream_options.include_usage)
                events = server_sent_events(desk, answer, reply, include_usage=include_usage)
                return OpenStream(events, close=answer.close, media_type="text/event-stream", headers=headers)
            try:
                completion = await unless_gone(request, whole(answer, reply))
            finally:
                await answer.close()
            return JSONResponse(completion.model_dump(), headers={"Cache-Control": "no-store", **headers})
        except ClientGone:
            return Response(status_code=499)  # for the log: nobody reads it

    @router.get("/models", response_model=ModelList)
    async def list_models() -> ModelList:
        """The models that can be asked: one."""
        return ModelList(data=[model])

    @router.get("/models/{model_id:path}", response_model=Model, responses={404: ERRORS[404]})
    async def retrieve_model(model_id: str) -> Model:
        """One model."""
        desk.check_model(model_id)
        return model

    # Routers keep what they are given; the names are for the document only.
    _ = (create_chat_completion, list_models, retrieve_model)
    return router
