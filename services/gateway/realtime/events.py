"""The events that a client may send over `WS /v1/realtime`, checked strictly."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from services.gateway.chat.request import (
    StreamChatOptions,
    StrictModel,
    check_extra,
    option_error,
    parse_json,
)
from services.messages.api_error import ApiError

# Fields that are not implemented (speech, tools), with the values that are accepted because they change nothing.
REALTIME_NEUTRAL_VALUES: dict[str, tuple[Any, ...]] = {
    "audio": ({},),
    "include": ([],),
    "input": (),
    "parallel_tool_calls": (True, False),
    "prompt": (),
    "reasoning": (),
    "temperature": (),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "tracing": (),
    "truncation": ("auto",),
}


class RealtimeOptions(StreamChatOptions):
    """Our options, and the camera that the conversation is about."""

    camera: Annotated[str, Field(min_length=1, max_length=256)] | None = None


class AnswerOptions(BaseModel):
    """Options that a session sets for all answers, and `response.create` for one."""

    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False)
    instructions: str | None = None
    max_output_tokens: Annotated[int, Field(ge=1)] | Literal["inf"] | None = None
    output_modalities: list[Literal["text"]] | None = None
    streamchat: RealtimeOptions | None = None


class SessionOptions(AnswerOptions):
    """OpenAI's session, as far as it is implemented."""

    type: Literal["realtime"] | None = None
    model: str | None = None


class ResponseOptions(AnswerOptions):
    """OpenAI's response parameters, as far as they are implemented."""

    conversation: Literal["auto", "none"] | None = None
    metadata: dict[str, str] | None = None


class TextContent(StrictModel):
    """Text. Pictures come from the session's camera; clips are supported by the chat API only."""

    type: Literal["input_text", "output_text", "text"]
    text: str


class NewItem(BaseModel):
    """A message for the conversation."""

    model_config = ConfigDict(strict=True, extra="allow")
    type: Literal["message"]
    role: Literal["system", "user", "assistant"]
    content: list[TextContent]
    id: Annotated[str, Field(min_length=1, max_length=64)] | None = None


class ClientEvent(BaseModel):
    """Every event may carry an id, which an error about it names."""

    model_config = ConfigDict(strict=True, extra="forbid")
    event_id: str | None = None


class SessionUpdate(ClientEvent):
    """Change the session. Fields that are left out keep their values."""

    type: Literal["session.update"]
    session: SessionOptions


class ItemCreate(ClientEvent):
    """Add a message, without asking for an answer yet."""

    type: Literal["conversation.item.create"]
    item: NewItem
    previous_item_id: str | None = None


class ItemRetrieve(ClientEvent):
    """Get an item."""

    type: Literal["conversation.item.retrieve"]
    item_id: str


class ItemDelete(ClientEvent):
    """Delete an item."""

    type: Literal["conversation.item.delete"]
    item_id: str


class ResponseCreate(ClientEvent):
    """Start an answer."""

    type: Literal["response.create"]
    response: ResponseOptions | None = None


class ResponseCancel(ClientEvent):
    """Stop the answer."""

    type: Literal["response.cancel"]
    response_id: str | None = None


AnyEvent = SessionUpdate | ItemCreate | ItemRetrieve | ItemDelete | ResponseCreate | ResponseCancel
EVENTS: dict[str, type[AnyEvent]] = {
    "session.update": SessionUpdate,
    "conversation.item.create": ItemCreate,
    "conversation.item.retrieve": ItemRetrieve,
    "conversation.item.delete": ItemDelete,
    "response.create": ResponseCreate,
    "response.cancel": ResponseCancel,
}


class InvalidEvent(Exception):
    """An event that is not valid. `event_id` is the client's own, if it could be read."""

    def __init__(self, error: ApiError, event_id: str | None) -> None:
        super().__init__(error, event_id)
        self.error = error
        self.event_id = event_id


def parse_event(text: str) -> AnyEvent:
    """Parse and check an event. Raises InvalidEvent."""
    event_id = None
    try:
        value = parse_json(text)
        kind = value.get("type") if isinstance(value, dict) else None
        event_id = value.get("event_id") if isinstance(value, dict) else None
        if not isinstance(kind, str) or kind not in EVENTS:
            message = f"got an event of type {str(kind)[:80]!r}, wanted one of {', '.join(EVENTS)}"
            raise ApiError(400, "unknown_event", message, param="type")
        event = EVENTS[kind].model_validate(value)
        if isinstance(event, SessionUpdate):
            check_extra(event.session.model_extra or {}, REALTIME_NEUTRAL_VALUES, "session.")
        if isinstance(event, ResponseCreate) and event.response:
            check_extra(event.response.model_extra or {}, REALTIME_NEUTRAL_VALUES, "response.")
        return event
    except ValidationError as error:
        raise InvalidEvent(option_error(error), event_id if isinstance(event_id, str) else None) from error
    except ApiError as error:
        raise InvalidEvent(error, event_id if isinstance(event_id, str) else None) from error
