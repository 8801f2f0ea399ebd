"""An OpenAI-compatible server on a real port whose replies come from a function. No test."""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse

from tests.services.served_gateway import listening

MODEL = "scripted"


@dataclass(kw_only=True)
class ChatRequest:
    """A request that came in."""

    text: str
    num_pictures: int
    model: str
    shown: list[str]  # answers of the in-context examples


@dataclass(kw_only=True)
class ScriptedEndpoint:
    """`reply` gives the text for a request, or an HTTP status to refuse it with."""

    reply: Callable[[ChatRequest], str | int]
    url: str = ""
    requests: list[ChatRequest] = field(default_factory=lambda: list[ChatRequest]())

    def answer(self, body: dict[str, Any]) -> Response:
        """One chat completion, streamed word by word if the request says so."""
        content = body["messages"][-1]["content"]
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
        text = "\n".join(part["text"] for part in parts if part["type"] == "text")
        num_pictures = sum(part["type"] == "image_url" for part in parts)
        shown = [message["content"] for message in body["messages"] if message["role"] == "assistant"]
        request = ChatRequest(text=text, num_pictures=num_pictures, model=body["model"], shown=shown)
        self.requests.append(request)
        reply = self.reply(request)
        if isinstance(reply, int):
            return JSONResponse({"error": {"message": "no"}}, reply, {"Retry-After": "0"})
        if body.get("stream"):
            return StreamingResponse(chunks(reply), media_type="text/event-stream")
        choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": reply}}
        usage = {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110}
        return JSONResponse({**head("chat.completion"), "choices": [choice], "usage": usage})


def head(kind: str) -> dict[str, Any]:
    return {"id": "1", "object": kind, "created": 1, "model": MODEL}


def chunks(reply: str) -> Iterator[str]:
    for number, word in enumerate(reply.split(" ")):
        delta = {"content": word if number == 0 else " " + word}
        choice = {"index": 0, "delta": delta, "finish_reason": None}
        yield f"data: {json.dumps({**head('chat.completion.chunk'), 'choices': [choice]})}\n\n"
    choice = {"index": 0, "delta": {}, "finish_reason": "stop"}
    yield f"data: {json.dumps({**head('chat.completion.chunk'), 'choices': [choice]})}\n\ndata: [DONE]\n\n"


@contextmanager
def scripted(reply: Callable[[ChatRequest], str | int]) -> Generator[ScriptedEndpoint]:
    """Serve the function on a free port."""
    endpoint = ScriptedEndpoint(reply=reply)
    app = FastAPI()

    @app.get("/v1/models")
    def models() -> dict[str, Any]:  # pyright: ignore[reportUnusedFunction]
        return {"object": "list", "data": [{"id": MODEL, "object": "model", "created": 1, "owned_by": "us"}]}

    @app.post("/v1/chat/completions")
    async def complete(request: Request) -> Response:  # pyright: ignore[reportUnusedFunction]
        return endpoint.answer(await request.json())

    with listening(app) as url:
        endpoint.url = url
        yield endpoint
