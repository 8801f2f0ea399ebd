"""`WS /v1/realtime`: a conversation in text about one camera at a time, with the events of OpenAI's Realtime API."""

from __future__ import annotations

import asyncio
import json
import logging
from contextlib import suppress
from typing import Any, Literal

from fastapi import APIRouter, WebSocket
from starlette.websockets import WebSocketDisconnect

from services.access.caller import Caller, caller_of
from services.gateway.answer import Answer
from services.gateway.chat.question import check_text, dialog_request
from services.gateway.chat.request import StreamChatOptions
from services.gateway.open_stream import SEND_TIMEOUT_S, ClientDisconnected
from services.gateway.question_service import QuestionService
from services.gateway.realtime.conversation import Conversation, Item, new_id
from services.gateway.realtime.events import (
    InvalidEvent,
    ItemCreate,
    ItemDelete,
    ItemRetrieve,
    RealtimeOptions,
    ResponseCancel,
    ResponseCreate,
    ResponseOptions,
    SessionUpdate,
    parse_event,
)
from services.gateway.realtime.reply import RealtimeReply
from services.messages.api_error import ApiError
from services.messages.dialog import DialogRequest

PING_S = 240.0  # proxies close idle connections (HAProxy as configured here: after an hour)
MAX_MESSAGE_BYTES = 2**20
MAX_IGNORED_NAMES = 16
SUBPROTOCOL = "realtime"  # what OpenAI's browser clients ask for
POLICY_VIOLATION = 1008  # WebSocket close code, for a client that does not read and for a wrong model

log = logging.getLogger(__name__)


class RealtimeSession:
    """One connection: its options, its conversation, and at most one response at a time."""

    def __init__(
        self,
        questions: QuestionService,
        socket: WebSocket,
        caller: Caller,
        *,
        send_timeout_s: float = SEND_TIMEOUT_S,
    ) -> None:
        self._questions = questions
        self._caller = caller
        self._socket = socket
        self._stall_s = send_timeout_s
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
        """Serve the connection until it ends. A response in progress is then cancelled."""
        reason = ""
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._keep_alive())
                tasks.create_task(self._serve(tasks))
        except* ClientDisconnected:
            pass
        except* TimeoutError:
            reason = f"nothing was read for {self._stall_s:.0f} s"
            log.warning("realtime client cut off: %s", reason)
        with suppress(Exception):  # the client may be gone, or still not reading
            async with asyncio.timeout(1):
                await self._socket.close(POLICY_VIOLATION if reason else 1000, reason)

    async def _serve(self, tasks: asyncio.TaskGroup) -> None:
        await self._send({"type": "session.created", "session": self._session()})
        while True:
            message = await self._socket.receive()
            if message["type"] == "websocket.disconnect":
                raise ClientDisconnected
            event_id = None
            try:
                await self._caller.count_request()
                event, ignored = parse_event(checked_text(message))
                event_id = event.event_id
                await self._handle(event, ignored, tasks)
            except InvalidEvent as invalid:
                await self._send_error(invalid.error, invalid.event_id)
            except ApiError as error:
                await self._send_error(error, event_id)

    async def _handle(self, event: Any, ignored: list[str], tasks: asyncio.TaskGroup) -> None:
        match event:
            case SessionUpdate():
                await self._update(event, ignored)
            case ItemCreate():
                await self._create_item(event)
            case ItemRetrieve():
                item = self._conversation.item(event.item_id)
                await self._send({"type": "conversation.item.retrieved", "item": item.event})
            case ItemDelete():
                self._conversation.delete(event.item_id)
                await self._send({"type": "conversation.item.deleted", "item_id": event.item_id})
            case ResponseCreate():
                await self._create_response(event.response or ResponseOptions(), ignored, tasks)
            case ResponseCancel():
                await self._cancel(event)
            case _:
                raise AssertionError(event)

    async def _update(self, event: SessionUpdate, ignored: list[str]) -> None:
        session = event.session
        if session.model is not None:
            self._questions.check_model(session.model)
        limit = self._limit(session.max_output_tokens)
        if session.streamchat is not None:
            if session.streamchat.camera is not None:
                self._caller.check_can_see(session.streamchat.camera, "session.streamchat.camera")
            self._options = merged(self._options, session.streamchat)
        if "instructions" in session.model_fields_set:
            self._instructions = session.instructions or ""
        if "max_output_tokens" in session.model_fields_set:
            self._max_output_tokens = limit
        updated = {"type": "session.updated", "session": self._session()}
        await self._send(naming_ignored(updated, ignored))

    async def _create_item(self, event: ItemCreate) -> None:
        text = "\n".join(part.text for part in event.item.content)
        item = Item(id=event.item.id or new_id("item"), role=event.item.role, text=text)
        before, deleted = self._conversation.add(item, event.previous_item_id)
        for kind in ("conversation.item.added", "conversation.item.done"):
            await self._send({"type": kind, "previous_item_id": before, "item": item.event})
        for item_id in deleted:
            await self._send({"type": "conversation.item.deleted", "item_id": item_id})

    async def _create_response(
        self, options: ResponseOptions, ignored: list[str], tasks: asyncio.TaskGroup
    ) -> None:
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
        created = [naming_ignored(event, ignored) for event in reply.created()]
        answering = self._respond(request, reply, created, in_conversation=in_conversation)
        self._response = tasks.create_task(answering)
        await asyncio.sleep(
            0
        )  # it starts before it can be cancelled, so that each response ends with response.done

    async def _request(self, options: ResponseOptions) -> DialogRequest:
        own = merged(self._options, options.streamchat) if options.streamchat else self._options
        if own.camera is None:
            message = (
                'name a camera first: {"type": "session.update", "session": {"streamchat": {"camera": "ID"}}}'
            )
            raise ApiError(400, "no_camera", message, param="session.streamchat.camera")
        instructions = self._instructions if options.instructions is None else options.instructions
        settings = self._questions.settings
        messages = self._conversation.messages(instructions, settings.max_prompt_tokens)
        if not messages:
            raise ApiError(
                400, "empty_question", "nothing was asked yet: send a conversation.item.create first"
            )
        check_text(messages, settings.max_prompt_tokens, "conversation")
        await self._questions.check_camera(self._caller, own.camera, "session.streamchat.camera")
        limit = (
            self._limit(options.max_output_tokens)
            or self._max_output_tokens
            or settings.max_completion_tokens
        )
        chat_options = StreamChatOptions.model_construct(**own.model_dump(exclude={"camera"}))
        return dialog_request(
            own.camera, messages, chat_options, max_tokens=limit, max_answer_s=settings.max_answer_s
        )

    def _limit(self, wanted: int | Literal["inf"] | None) -> int | None:
        largest = self._questions.settings.max_completion_tokens
        if isinstance(wanted, int) and wanted > largest:
            message = f"max_output_tokens: got {wanted}, wanted at most {largest}"
            raise ApiError(400, "invalid_option", message, param="max_output_tokens")
        return None if wanted == "inf" else wanted

    async def _respond(
        self,
        request: DialogRequest,
        reply: RealtimeReply,
        created: list[dict[str, Any]],
        *,
        in_conversation: bool,
    ) -> None:
        conversation = self._conversation if in_conversation else None
        try:
            await self._send_all(created)
            answer = await self._questions.ask(self._caller, request)
            try:
                await self._send_all(reply.started(answer.num_prompt_tokens, conversation))
                await self._send_tokens(answer, reply)
            finally:
                await answer.close()
            reply.limit = answer.ended.limit if answer.ended else None
            last = reply.ended("incomplete" if reply.limit else "completed", conversation)
        except ApiError as error:
            self._questions.metrics.record_error(error.code, error.status)
            last = reply.ended("failed", conversation, error)
        except asyncio.CancelledError:
            if not self._cancelled:  # the connection ends, so there is nobody to send to
                raise
            if task := asyncio.current_task():
                task.uncancel()
            last = reply.ended("cancelled", conversation)
        self._response = None
        await self._send_all(last)

    async def _send_tokens(self, answer: Answer, reply: RealtimeReply) -> None:
        silent_after_ms = self._questions.settings.silent_after_s * 1000
        lost_reported = answer.request.visual_context == "frozen"  # a frozen answer uses no new frames
        while (tokens := await answer.next_tokens()) is not None:
            await self._send(reply.delta(tokens))
            age_ms = tokens[-1].frame_age_ms
            if not lost_reported and age_ms is not None and age_ms > silent_after_ms:
                lost_reported = True
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
            "model": self._questions.model_name,
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

    async def _send_error(self, error: ApiError, event_id: str | None) -> None:
        self._questions.metrics.record_error(error.code, error.status)
        await self._send({"type": "error", "error": {**error.body.error.model_dump(), "event_id": event_id}})

    async def _keep_alive(self) -> None:
        while True:
            await asyncio.sleep(PING_S)
            await self._send({"type": "streamchat.ping"})

    async def _send_all(self, events: list[dict[str, Any]]) -> None:
        for event in events:
            await self._send(event)

    async def _send(self, event: dict[str, Any]) -> None:
        """Send one event. Raises ClientDisconnected, or TimeoutError if the client has stopped reading."""
        text = json.dumps({"event_id": new_id("event"), **event}, ensure_ascii=False)
        async with asyncio.timeout(self._stall_s), self._sending:
            try:
                await self._socket.send_text(text)
            except (WebSocketDisconnect, RuntimeError, OSError) as error:
                if isinstance(error, TimeoutError):
                    raise
                raise ClientDisconnected from error


def naming_ignored(event: dict[str, Any], ignored: list[str]) -> dict[str, Any]:
    """The event with the paths of the fields that were ignored in the client's event, if any were."""
    return {**event, "streamchat": {"ignored": ignored[:MAX_IGNORED_NAMES]}} if ignored else event


def merged(options: RealtimeOptions, change: RealtimeOptions) -> RealtimeOptions:
    """The options with the given changes, null included. Fields that are left out keep their values."""
    return options.model_copy(update={name: getattr(change, name) for name in change.model_fields_set})


def checked_text(message: Any) -> str:
    """The text of a message. Raises ApiError if it is binary or too long."""
    text = message.get("text")
    if text is None:
        raise ApiError(400, "invalid_message", "got a binary message, wanted JSON text")
    if len(text) > MAX_MESSAGE_BYTES:
        problem = f"got {len(text)} characters, wanted at most {MAX_MESSAGE_BYTES}"
        raise ApiError(400, "message_too_large", problem)
    return text


def realtime_routes(questions: QuestionService) -> APIRouter:
    """The route."""
    router = APIRouter(prefix="/v1")

    @router.websocket("/realtime")
    async def realtime(socket: WebSocket, model: str | None = None) -> None:
        wanted = socket.scope.get("subprotocols", [])
        await socket.accept(SUBPROTOCOL if SUBPROTOCOL in wanted else None)
        try:
            questions.check_model(questions.model_name if model is None else model)
        except ApiError as error:
            questions.metrics.record_error(error.code, error.status)
            await socket.send_json(
                {"type": "error", "event_id": new_id("event"), "error": error.body.error.model_dump()}
            )
            await socket.close(POLICY_VIOLATION, error.code)
            return
        with questions.metrics.websockets:
            await RealtimeSession(questions, socket, caller_of(socket)).run()

    _ = realtime
    return router
