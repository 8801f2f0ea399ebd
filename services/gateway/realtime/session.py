"""`WS /v1/realtime`: a conversation with one camera at a time, after OpenAI's Realtime events, in text."""

from __future__ import annotations

import asyncio
import json
import logging
from contextlib import suppress
from typing import Any, Literal

from fastapi import APIRouter, WebSocket
from starlette.websockets import WebSocketDisconnect

from services.access.authentication import Caller, caller_of
from services.gateway.answer import Answer
from services.gateway.chat.question import check_words, dialog_request
from services.gateway.chat.request import StreamChatOptions
from services.gateway.open_stream import STALL_S, ClientGone
from services.gateway.question_service import Desk
from services.gateway.realtime.conversation import Conversation, Item, new_id
from services.gateway.realtime.events import (
    BadEvent,
    ItemCreate,
    ItemDelete,
    ItemRetrieve,
    RealtimeOptions,
    ResponseCancel,
    ResponseCreate,
    ResponseOptions,
    SessionUpdate,
    client_event,
)
from services.gateway.realtime.reply import RealtimeReply
from services.messages.api_error import ApiError
from services.messages.dialog import DialogRequest

PING_S = 240.0  # proxies end a connection on which nothing passes (HAProxy here: after an hour)
MAX_MESSAGE_BYTES = 2**20
SUBPROTOCOL = "realtime"  # what OpenAI's browser clients ask for
TOO_SLOW, WRONG_MODEL = 1008, 1008  # WebSocket close codes: policy violation

log = logging.getLogger(__name__)


class RealtimeSession:
    """One connection: its options, its conversation, and at most one answer at a time."""

    def __init__(self, desk: Desk, socket: WebSocket, caller: Caller, *, stall_s: float = STALL_S) -> None:
        self._desk = desk
        self._caller = caller
        self._socket = socket
        self._stall_s = stall_s
        self._id = new_id("sess")
        self._instructions = ""
        self._max_output_tokens: int | None = None
        self._options = RealtimeOptions()
        self._conversation = Conversation()
        self._sending = asyncio.Lock()
        self._response: asyncio.Task[None] | None = None
        self._response_id: str | None = None
        self._cancelled = False

    async def run(self) -> None:
        """Serve the connection until it ends; whatever goes on then is cancelled."""
        reason = ""
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._keep_alive())
                tasks.create_task(self._serve(tasks))
        except* ClientGone:
            pass
        except* TimeoutError:
            reason = f"nothing was read for {self._stall_s:.0f} s"
            log.warning("realtime client cut off: %s", reason)
        with suppress(Exception):  # it may be gone, or still not reading
            async with asyncio.timeout(1):
                await self._socket.close(TOO_SLOW if reason else 1000, reason)

    async def _serve(self, tasks: asyncio.TaskGroup) -> None:
        await self._send({"type": "session.created", "session": self._session()})
        while True:
            message = await self._socket.receive()
            if message["type"] == "websocket.disconnect":
                raise ClientGone
            event_id = None
            try:
                self._caller.take()
                event = client_event(checked_text(message))
                event_id = event.event_id
                await self._handle(event, tasks)
            except BadEvent as bad:
                await self._fail(bad.error, bad.event_id)
            except ApiError as error:
                await self._fail(error, event_id)

    async def _handle(self, event: Any, tasks: asyncio.TaskGroup) -> None:
        match event:
            case SessionUpdate():
                await self._update(event)
            case ItemCreate():
                await self._create_item(event)
            case ItemRetrieve():
                item = self._conversation.item(event.item_id)
                await self._send({"type": "conversation.item.retrieved", "item": item.event})
            case ItemDelete():
                self._conversation.delete(event.item_id)
                await self._send({"type": "conversation.item.deleted", "item_id": event.item_id})
            case ResponseCreate():
                await self._create_response(event.response or ResponseOptions(), tasks)
            case ResponseCancel():
                await self._cancel(event)
            case _:
                raise AssertionError(event)

    async def _update(self, event: SessionUpdate) -> None:
        session = event.session
        if session.model is not None:
            self._desk.check_model(session.model)
        limit = self._limit(session.max_output_tokens)
        if session.streamchat is not None:
            if session.streamchat.camera is not None:
                self._caller.check_sees(session.streamchat.camera, "session.streamchat.camera")
            self._options = merged(self._options, session.streamchat)
        if "instructions" in session.model_fields_set:
            self._instructions = session.instructions or ""
        if "max_output_tokens" in session.model_fields_set:
            self._max_output_tokens = limit
        await self._send({"type": "session.updated", "session": self._session()})

    async def _create_item(self, event: ItemCreate) -> None:
        text = "\n".join(part.text for part in event.item.content)
        item = Item(id=event.item.id or new_id("item"), role=event.item.role, text=text)
        before, forgotten = self._conversation.add(item, event.previous_item_id)
        for kind in ("conversation.item.added", "conversation.item.done"):
            await self._send({"type": kind, "previous_item_id": before, "item": item.event})
        for item_id in forgotten:
            await self._send({"type": "conversation.item.deleted", "item_id": item_id})

    async def _create_response(self, options: ResponseOptions, tasks: asyncio.TaskGroup) -> None:
        if self._response is not None:
            message = (
                f"response {self._response_id} is still being made: cancel it or wait for its response.done"
            )
            raise ApiError(400, "conversation_already_has_active_response", message)
        request = await self._request(options)
        in_conversation = options.conversation != "none"
        conversation_id = self._conversation.id if in_conversation else None
        reply = RealtimeReply(conversation_id, request.max_tokens, options.metadata)
        self._cancelled = False
        self._response_id = reply.id
        self._response = tasks.create_task(self._respond(request, reply, in_conversation=in_conversation))
        await asyncio.sleep(0)  # it has begun before a cancel can come: each response ends with response.done

    async def _request(self, options: ResponseOptions) -> DialogRequest:
        ours = merged(self._options, options.streamchat) if options.streamchat else self._options
        if ours.camera is None:
            message = (
                'name a camera first: {"type": "session.update", "session": {"streamchat": {"camera": "ID"}}}'
            )
            raise ApiError(400, "no_camera", message, param="session.streamchat.camera")
        instructions = self._instructions if options.instructions is None else options.instructions
        settings = self._desk.settings
        messages = self._conversation.messages(instructions, settings.max_prompt_tokens)
        if not messages:
            raise ApiError(
                400, "empty_question", "nothing was asked yet: send a conversation.item.create first"
            )
        check_words(messages, settings.max_prompt_tokens, "conversation")
        await self._desk.check_camera(self._caller, ours.camera, "session.streamchat.camera")
        limit = (
            self._limit(options.max_output_tokens)
            or self._max_output_tokens
            or settings.max_completion_tokens
        )
        plain = StreamChatOptions.model_construct(**ours.model_dump(exclude={"camera"}))
        return dialog_request(ours.camera, messages, plain, max_tokens=limit)

    def _limit(self, wanted: int | Literal["inf"] | None) -> int | None:
        largest = self._desk.settings.max_completion_tokens
        if isinstance(wanted, int) and wanted > largest:
            message = f"max_output_tokens: got {wanted}, wanted at most {largest}"
            raise ApiError(400, "invalid_option", message, param="max_output_tokens")
        return None if wanted == "inf" else wanted

    async def _respond(self, request: DialogRequest, reply: RealtimeReply, *, in_conversation: bool) -> None:
        conversation = self._conversation if in_conversation else None
        try:
            await self._send_all(reply.created())
            answer = await self._desk.ask(request)
            try:
                await self._send_all(reply.began(answer.num_prompt_tokens, conversation))
                await self._speak(answer, reply)
            finally:
                await answer.close()
            length = answer.ended is not None and answer.ended.finish_reason == "length"
            last = reply.ended("incomplete" if length else "completed", conversation)
        except ApiError as error:
            self._desk.metrics.failed(error.code, error.status)
            last = reply.ended("failed", conversation, error)
        except asyncio.CancelledError:
            if not self._cancelled:  # the connection ends: there is nobody to tell
                raise
            if task := asyncio.current_task():
                task.uncancel()
            last = reply.ended("cancelled", conversation)
        self._response = None
        await self._send_all(last)

    async def _speak(self, answer: Answer, reply: RealtimeReply) -> None:
        lost_after_ms = self._desk.settings.silent_after_s * 1000
        lost = answer.request.visual_context == "frozen"  # a frozen answer does not look any more
        while (tokens := await answer.next_tokens()) is not None:
            await self._send(reply.delta(tokens))
            if not lost and tokens[-1].frame_age_ms > lost_after_ms:
                lost = True
                await self._send(reply.camera_lost(answer.request.camera, tokens[-1]))

    async def _cancel(self, event: ResponseCancel) -> None:
        if self._response is None or event.response_id not in (None, self._response_id):
            raise ApiError(400, "response_cancel_not_active", "no such response is being made")
        self._cancelled = True
        self._response.cancel()

    def _session(self) -> dict[str, Any]:
        return {
            "type": "realtime",
            "object": "realtime.session",
            "id": self._id,
            "model": self._desk.model_name,
            "output_modalities": ["text"],
            "instructions": self._instructions,
            "max_output_tokens": self._max_output_tokens or "inf",
            "tools": [],
            "tool_choice": "none",
            "streamchat": {
                **self._options.model_dump(),
                "visual_context": self._options.visual_context or "live",
            },
        }

    async def _fail(self, error: ApiError, event_id: str | None) -> None:
        self._desk.metrics.failed(error.code, error.status)
        await self._send({"type": "error", "error": {**error.body.error.model_dump(), "event_id": event_id}})

    async def _keep_alive(self) -> None:
        while True:
            await asyncio.sleep(PING_S)
            await self._send({"type": "streamchat.ping"})

    async def _send_all(self, events: list[dict[str, Any]]) -> None:
        for event in events:
            await self._send(event)

    async def _send(self, event: dict[str, Any]) -> None:
        """One event; raises ClientGone, or TimeoutError when the client has stopped reading."""
        text = json.dumps({"event_id": new_id("event"), **event}, ensure_ascii=False)
        async with asyncio.timeout(self._stall_s), self._sending:
            try:
                await self._socket.send_text(text)
            except (WebSocketDisconnect, RuntimeError, OSError) as error:
                if isinstance(error, TimeoutError):
                    raise
                raise ClientGone from error


def merged(options: RealtimeOptions, change: RealtimeOptions) -> RealtimeOptions:
    """What is given changes, null included; what is left out stays."""
    return options.model_copy(update={name: getattr(change, name) for name in change.model_fields_set})


def checked_text(message: Any) -> str:
    """A message's text; raises ApiError when it is binary or too long."""
    text = message.get("text")
    if text is None:
        raise ApiError(400, "invalid_message", "got a binary message, wanted JSON text")
    if len(text) > MAX_MESSAGE_BYTES:
        problem = f"got {len(text)} characters, wanted at most {MAX_MESSAGE_BYTES}"
        raise ApiError(400, "message_too_large", problem)
    return text


def realtime_api(desk: Desk) -> APIRouter:
    """The route."""
    router = APIRouter(prefix="/v1")

    @router.websocket("/realtime")
    async def realtime(socket: WebSocket, model: str | None = None) -> None:
        wanted = socket.scope.get("subprotocols", [])
        await socket.accept(SUBPROTOCOL if SUBPROTOCOL in wanted else None)
        try:
            desk.check_model(desk.model_name if model is None else model)
        except ApiError as error:
            desk.metrics.failed(error.code, error.status)
            await socket.send_json(
                {"type": "error", "event_id": new_id("event"), "error": error.body.error.model_dump()}
            )
            await socket.close(WRONG_MODEL, error.code)
            return
        with desk.metrics.websockets:
            await RealtimeSession(desk, socket, caller_of(socket)).run()

    _ = realtime
    return router
