"""The events that a client may send over `WS /v1/realtime`, checked strictly."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, AliasChoices, BaseModel, ConfigDict, Field, ValidationError

from services.gateway.chat.request import (
    StreamChatOptions,
    check_extra,
    option_error,
    parse_json,
)
from services.messages.api_error import ApiError
from services.messages.camera_name import camera_id

# Fields that are not implemented, with the values that are accepted because they change nothing.
REALTIME_NEUTRAL_VALUES: dict[str, tuple[Any, ...]] = {
    "input": (),
    "modalities": (["text"],),  # of the API before its general availability, like some of the fields below
    "parallel_tool_calls": (True, False),
    "prompt": (),
    "temperature": (),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "truncation": ("auto",),
}
# Fields that never change an answer in text: options of speech, and what a client sends back of our session.
REALTIME_IGNORED_FIELDS = {
    "audio",
    "client_secret",
    "expires_at",
    "id",
    "include",
    "input_audio_format",
    "input_audio_noise_reduction",
    "input_audio_transcription",
    "object",
    "output_audio_format",
    "reasoning",
    "speed",
    "tracing",
    "turn_detection",
    "voice",
}


class RealtimeOptions(StreamChatOptions):
    """Our options, and the camera that the conversation is about."""

    camera: Annotated[str, Field(min_length=1, max_length=256), AfterValidator(camera_id)] | None = None


class AnswerOptions(BaseModel):
    """Options that a session sets for all answers, and `response.create` for one."""

    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False)
    instructions: str | None = None
    max_output_tokens: Annotated[int, Field(ge=1)] | Literal["inf"] | None = Field(
        default=None, validation_alias=AliasChoices("max_output_tokens", "max_response_output_tokens")
    )
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


class TextContent(BaseModel):
    """Text. Pictures come from the session's camera; clips are supported by the chat API only."""

    model_config = ConfigDict(strict=True, extra="allow")
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


def check_options(event: AnyEvent) -> list[str]:
    """The paths of the options that are ignored. Raises ApiError 400 for one that would change the answer."""
    if isinstance(event, SessionUpdate):
        options, path = event.session, "session."
    elif isinstance(event, ResponseCreate) and event.response:
        options, path = event.response, "response."
    else:
        return []
    extra = options.model_extra or {}
    extra = {name: value for name, value in extra.items() if name not in REALTIME_IGNORED_FIELDS}
    return check_extra(extra, REALTIME_NEUTRAL_VALUES, path)


def parse_event(text: str) -> tuple[AnyEvent, list[str]]:
    """Parse and check an event. Returns it with the paths of the fields that are ignored. Raises InvalidEvent."""
    event_id = None
    try:
        value = parse_json(text)
        kind = value.get("type") if isinstance(value, dict) else None
        event_id = value.get("event_id") if isinstance(value, dict) else None
        if not isinstance(kind, str) or kind not in EVENTS:
            message = f"got an event of type {str(kind)[:80]!r}, wanted one of {', '.join(EVENTS)}"
            raise ApiError(400, "unknown_event", message, param="type")
        event = EVENTS[kind].model_validate(value)
        return event, check_options(event)
    except ValidationError as error:
        raise InvalidEvent(option_error(error), event_id if isinstance(event_id, str) else None) from error
    except ApiError as error:
        raise InvalidEvent(error, event_id if isinstance(event_id, str) else None) from error
