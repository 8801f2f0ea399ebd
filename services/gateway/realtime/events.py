"""What a client may send over `WS /v1/realtime`, checked strictly."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from services.gateway.chat.request import StreamChatOptions, Strict, check_extra, decoded_json, option_error
from services.messages.api_error import ApiError

# OpenAI's fields for what we have not (speech, tools): accepted where their value changes nothing.
NEUTRAL: dict[str, tuple[Any, ...]] = {
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
    """Our options, and the camera that is talked about."""

    camera: Annotated[str, Field(min_length=1, max_length=256)] | None = None


class Spoken(BaseModel):
    """What a session sets for all answers, and `response.create` for one."""

    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False)
    instructions: str | None = None
    max_output_tokens: Annotated[int, Field(ge=1)] | Literal["inf"] | None = None
    output_modalities: list[Literal["text"]] | None = None
    streamchat: RealtimeOptions | None = None


class SessionOptions(Spoken):
    """OpenAI's session, as far as it is implemented."""

    type: Literal["realtime"] | None = None
    model: str | None = None


class ResponseOptions(Spoken):
    """OpenAI's response parameters, as far as they are implemented."""

    conversation: Literal["auto", "none"] | None = None
    metadata: dict[str, str] | None = None


class TextContent(Strict):
    """Words. Pictures come from the session's camera; clips are asked about over the chat API."""

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
    """Change the session; what is left out stays."""

    type: Literal["session.update"]
    session: SessionOptions


class ItemCreate(ClientEvent):
    """Say something, without asking for an answer yet."""

    type: Literal["conversation.item.create"]
    item: NewItem
    previous_item_id: str | None = None


class ItemRetrieve(ClientEvent):
    """Show an item again."""

    type: Literal["conversation.item.retrieve"]
    item_id: str


class ItemDelete(ClientEvent):
    """Forget an item."""

    type: Literal["conversation.item.delete"]
    item_id: str


class ResponseCreate(ClientEvent):
    """Answer now."""

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


class BadEvent(Exception):
    """An event that cannot be taken; `event_id` is the client's own, when it could be read."""

    def __init__(self, error: ApiError, event_id: str | None) -> None:
        super().__init__(error, event_id)
        self.error = error
        self.event_id = event_id


def client_event(text: str) -> AnyEvent:
    """The checked event; raises BadEvent."""
    event_id = None
    try:
        value = decoded_json(text)
        kind = value.get("type") if isinstance(value, dict) else None
        event_id = value.get("event_id") if isinstance(value, dict) else None
        if not isinstance(kind, str) or kind not in EVENTS:
            message = f"got an event of type {str(kind)[:80]!r}, wanted one of {', '.join(EVENTS)}"
            raise ApiError(400, "unknown_event", message, param="type")
        event = EVENTS[kind].model_validate(value)
        if isinstance(event, SessionUpdate):
            check_extra(event.session.model_extra or {}, NEUTRAL, "session.")
        if isinstance(event, ResponseCreate) and event.response:
            check_extra(event.response.model_extra or {}, NEUTRAL, "response.")
        return event
    except ValidationError as error:
        raise BadEvent(option_error(error), event_id if isinstance(event_id, str) else None) from error
    except ApiError as error:
        raise BadEvent(error, event_id if isinstance(event_id, str) else None) from error
