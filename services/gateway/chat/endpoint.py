"""`POST /v1/chat/completions` and `GET /v1/models`, so that any OpenAI client can ask about a camera."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Sequence
from typing import Any, Literal
from urllib.parse import quote

from fastapi import APIRouter, Request
from pydantic import BaseModel
from pydantic_core import to_json
from starlette.responses import JSONResponse, Response

from services.access.caller import Caller, caller_of
from services.gateway.answer import Answer
from services.gateway.chat.question import Question, question_of
from services.gateway.chat.reply import ChatCompletion, ChatCompletionChunk, Reply, usage_of
from services.gateway.chat.request import ChatRequest, parse_json, parse_request
from services.gateway.chat.resumable_stream import (
    KEEP_ALIVE,
    KEEP_ALIVE_S,
    ResumableStreams,
    question_hash,
)
from services.gateway.open_stream import ClientDisconnected, OpenStream, cancel_on_disconnect
from services.gateway.question_service import QuestionService
from services.messages.api_error import ApiError, ErrorBody

IGNORED_HEADER = "X-Ignored-Parameters"
MAX_IGNORED_NAMES = 16
LARGE_BODY_BYTES = 2**18  # larger bodies are parsed in a thread, so that the event loop is not blocked

ERRORS: dict[int | str, dict[str, Any]] = {
    400: {"model": ErrorBody, "description": "Something in the request is wrong; `param` says where"},
    404: {"model": ErrorBody, "description": "No such model or camera"},
    409: {"model": ErrorBody, "description": "The camera has no frame yet"},
    410: {"model": ErrorBody, "description": "What `Last-Event-ID` names is not kept here (any more)"},
    413: {"model": ErrorBody, "description": "The request is too large"},
    429: {"model": ErrorBody, "description": "All places are taken; `Retry-After` says when to ask again"},
    503: {"model": ErrorBody, "description": "The decoder was lost, or a service cannot be reached"},
}

LAST_EVENT_ID = {
    "name": "Last-Event-ID",
    "in": "header",
    "schema": {"type": "string"},
    "description": "id of the last event that was received of a `resumable` answer: the rest of it is sent",
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


async def request_json(request: Request) -> Any:
    """The request's JSON, whose size the middleware limits. Raises ApiError 400 if it is none."""
    content_type = request.headers.get("content-type", "").split(";")[0].strip().lower()
    if content_type != "application/json":
        raise ApiError(
            400, "invalid_content_type", f"got content-type {content_type[:80]!r}, wanted application/json"
        )
    # Not `request.body()`: it would keep the body for as long as the answer takes.
    body = b"".join([chunk async for chunk in request.stream()])
    if len(body) < LARGE_BODY_BYTES:
        return parse_json(body)
    return await asyncio.to_thread(parse_json, body)


async def server_sent_events(
    questions: QuestionService, answer: Answer, reply: Reply, *, include_usage: bool
) -> AsyncGenerator[bytes, None]:
    """All events of the answer. The last one is `[DONE]` or an error, so the stream never ends silently."""

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
                yield KEEP_ALIVE
                continue
            if tokens is None:
                break
            yield event(reply.chunk(tokens=tokens))
        assert answer.ended is not None
        yield event(reply.chunk(ended=answer.ended))
        if include_usage:
            yield event(reply.usage_chunk(usage_of(answer)))
        yield b"data: [DONE]\n\n"
    except ApiError as error:
        questions.metrics.record_error(error.code, error.status)
        yield error.event().encode()


async def complete(answer: Answer, reply: Reply) -> ChatCompletion:
    """Wait for the end of the answer. Raises ApiError if it failed."""
    while await answer.next_tokens() is not None:
        pass
    assert answer.ended is not None
    usage = usage_of(answer)
    return reply.completion(answer.tokens, answer.ended, usage)


async def ask(questions: QuestionService, caller: Caller, chat: ChatRequest) -> tuple[Question, Answer]:
    """Check the question and start its answer. Raises ApiError before anything is sent."""
    question = await question_of(questions, caller, chat)
    return question, await questions.ask(caller, question.request)


def ignored_header(names: Sequence[str]) -> dict[str, str]:
    """Names the fields of a request that were ignored, in a form that is safe in a header."""
    if not names:
        return {}
    return {IGNORED_HEADER: ", ".join(quote(name[:64], safe="") for name in names[:MAX_IGNORED_NAMES])}


async def open_resumable(
    streams: ResumableStreams,
    caller: Caller,
    asked: bytes,
    answer: Answer,
    events: AsyncGenerator[bytes, None],
    headers: dict[str, str],
) -> Response:
    """The events, with ids. Raises ApiError 429 if there are too many such streams."""
    try:
        stream_id = answer.request.request_id
        return streams.open(stream_id, caller.key_id, asked, events, close=answer.close, headers=headers)
    except ApiError:
        await answer.close()
        raise


def is_resumable(chat: ChatRequest) -> bool:
    """Whether the client may lose its connection. Raises ApiError 400 if the answer is no stream."""
    wanted = bool(chat.streamchat and chat.streamchat.resumable)
    if wanted and not chat.stream:
        message = "streamchat.resumable: wanted with `stream: true` only"
        raise ApiError(400, "invalid_option", message, param="streamchat.resumable")
    return wanted


def chat_routes(questions: QuestionService, streams: ResumableStreams) -> APIRouter:
    """The routes."""
    router = APIRouter(prefix="/v1", tags=["OpenAI"])
    model = Model(id=questions.model_name, created=int(time.time()))

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
            "parameters": [LAST_EVENT_ID],
            "requestBody": {
                "required": True,
                "content": {"application/json": {"schema": {"$ref": "#/components/schemas/ChatRequest"}}},
            },
        },
    )
    async def create_chat_completion(request: Request) -> Response:
        """Ask about a camera, live. Words are made while the video goes on, each from the newest frame."""
        value, caller = await request_json(request), caller_of(request)
        if last_event_id := request.headers.get("last-event-id"):
            return streams.resume(caller.key_id, question_hash(value), last_event_id)
        chat, ignored = parse_request(value)
        asked = question_hash(value) if is_resumable(chat) else None
        try:
            question, answer = await cancel_on_disconnect(request, ask(questions, caller, chat))
            reply = Reply(question.request, questions.model_name, question.clip)
            headers = {"X-Request-Id": question.request.request_id, **ignored_header(ignored)}
            if chat.stream:
                include_usage = bool(chat.stream_options and chat.stream_options.include_usage)
                events = server_sent_events(questions, answer, reply, include_usage=include_usage)
                if asked is not None:
                    return await open_resumable(streams, caller, asked, answer, events, headers)
                return OpenStream(events, close=answer.close, media_type="text/event-stream", headers=headers)
            try:
                completion = await cancel_on_disconnect(request, complete(answer, reply))
            finally:
                await answer.close()
            return JSONResponse(completion.model_dump(), headers={"Cache-Control": "no-store", **headers})
        except ClientDisconnected:
            return Response(status_code=499)  # for the log only: the client is gone

    @router.get("/models", response_model=ModelList)
    async def list_models() -> ModelList:
        """The models that can be asked: one."""
        return ModelList(data=[model])

    @router.get("/models/{model_id:path}", response_model=Model, responses={404: ERRORS[404]})
    async def retrieve_model(model_id: str) -> Model:
        """One model."""
        questions.check_model(model_id)
        return model

    # The router keeps the functions; their names appear in the API document.
    _ = (create_chat_completion, list_models, retrieve_model)
    return router
