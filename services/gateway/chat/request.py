"""The request of `POST /v1/chat/completions`: OpenAI's fields and `streamchat`, checked strictly.

A field of OpenAI's that is not implemented is refused by name if it would change the answer. A field that nobody knows
here (of a newer or another client) is ignored, and the response names it. Nothing is ignored silently.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from services.messages.api_error import ApiError

CHARACTERS_PER_TOKEN = (
    16  # no tokenizer packs more into a token: a longer text cannot fit, and is refused early
)
MAX_MESSAGES = 1000
MAX_BIASES = 1024
MIN_TEMPERATURE = 0.01  # as the engine's

# Fields that are not implemented, with the values that are accepted because they change nothing.
CHAT_NEUTRAL_VALUES: dict[str, tuple[Any, ...]] = {
    "function_call": ("none",),
    "functions": ([],),
    "modalities": (["text"],),
    "moderation": (),
    "n": (1,),
    "parallel_tool_calls": (True, False),
    "reasoning_effort": ("none", "minimal", "low", "medium", "high", "xhigh"),  # the model does not reason
    "response_format": ({"type": "text"},),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "verbosity": ("medium",),
    "web_search_options": (),
}
TOOL_FIELDS = {
    "tools": "tool_choice",
    "functions": "function_call",
}  # no tool is called if the choice is "none"
# OpenAI's fields that never change an answer in text.
IGNORED_FIELDS = {
    "audio",
    "metadata",
    "prediction",
    "prompt_cache_key",
    "prompt_cache_options",
    "prompt_cache_retention",
    "safety_identifier",
    "service_tier",
    "store",
    "user",
}
PART_TYPES = {"text", "video_url", "image_url", "input_text", "output_text"}


def check_temperature(value: float) -> float:
    """Raises ValueError for a value that is neither 0 nor at least MIN_TEMPERATURE."""
    if 0 < value < MIN_TEMPERATURE:
        raise ValueError(f"wanted 0, or at least {MIN_TEMPERATURE}")
    return value


Temperature = Annotated[
    float,
    Field(ge=0, le=2, json_schema_extra={"anyOf": [{"maximum": 0}, {"minimum": MIN_TEMPERATURE}]}),
    AfterValidator(check_temperature),
]


class StrictModel(BaseModel):
    """Refuses unknown keys, silent conversions ("5" is not 5) and NaN."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)


class StreamChatOptions(StrictModel):
    """Our options, beside OpenAI's own: `extra_body={"streamchat": {...}}`."""

    visual_context: Literal["live", "frozen"] | None = Field(
        default=None,
        description="live (default): look again before every word; frozen: only what was visible when asked",
    )
    frames: Annotated[int, Field(ge=1, le=4096)] | None = Field(
        default=None, description="newest frames to see; default: the camera's whole FIFO"
    )
    tokens_per_second: Annotated[float, Field(ge=0.1, le=1000)] | None = Field(
        default=None, description="speak at this pace; default: as fast as it goes"
    )
    max_frame_age_ms: Annotated[float, Field(gt=0, le=86_400_000)] | None = Field(
        default=None, description="a token whose newest frame is older than this says `stale: true`"
    )
    time_limit_s: Annotated[float, Field(ge=0.1, le=86_400)] | None = Field(
        default=None, description="longest answer, in seconds; default and largest: as the server is set"
    )
    min_p: Annotated[float, Field(ge=0, le=1)] | None = Field(
        default=None, description="only tokens at least this likely, as a share of the likeliest one's chance"
    )
    repetition_penalty: Annotated[float, Field(ge=0.01, le=100)] | None = Field(
        default=None, description="above 1: what was said or asked before is less likely to be said"
    )


class ChatOptions(StreamChatOptions):
    """Our options of a chat completion."""

    resumable: bool | None = Field(
        default=None,
        description="events have ids, and the header Last-Event-ID goes on after a lost connection",
    )


class MediaUrl(BaseModel):
    """Where a picture comes from."""

    model_config = ConfigDict(strict=True, extra="allow")
    url: str = Field(description="camera://ID, or data:video/...;base64,... or data:image/...;base64,...")

    @model_validator(mode="before")
    @classmethod
    def _accept_text(cls, value: Any) -> Any:
        """Some clients send the URL itself."""
        return {"url": value} if isinstance(value, str) else value


class ContentPartModel(BaseModel):
    """A part of a message. Clients add keys of their own (`cache_control`), which change nothing."""

    model_config = ConfigDict(strict=True, extra="allow")


class TextPart(ContentPartModel):
    """Words."""

    type: Literal["text"]
    text: str


class VideoPart(ContentPartModel):
    """A camera, or a clip as a data URI."""

    type: Literal["video_url"]
    video_url: MediaUrl


class ImagePart(ContentPartModel):
    """A picture as a data URI."""

    type: Literal["image_url"]
    image_url: MediaUrl


ContentPart = Annotated[TextPart | VideoPart | ImagePart, Field(discriminator="type")]


class ChatMessage(BaseModel):
    """One message of the conversation."""

    model_config = ConfigDict(strict=True, extra="allow")
    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | list[ContentPart] | None = None


class StreamOptions(BaseModel):
    """OpenAI's."""

    model_config = ConfigDict(strict=True, extra="allow")
    include_usage: bool | None = None


class ChatRequest(BaseModel):
    """OpenAI's chat completion request, as far as it is implemented, and `streamchat`."""

    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False)
    model: str
    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=MAX_MESSAGES)]
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Temperature | None = Field(default=None, description="default 0: the likeliest word")
    top_p: Annotated[float, Field(ge=0, le=1)] | None = Field(
        default=None, description="0: the likeliest word, like temperature 0"
    )
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    logit_bias: (
        Annotated[dict[str, Annotated[float, Field(ge=-100, le=100)]], Field(max_length=MAX_BIASES)] | None
    ) = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stop: str | list[Annotated[str, Field(min_length=1, max_length=256)]] | None = None
    streamchat: ChatOptions | None = None


def parse_json(text: str | bytes) -> Any:
    """Parse strict JSON. Raises ApiError 400 `malformed_json`, also for NaN and lone surrogates."""

    def refuse_constant(name: str) -> Any:
        raise ValueError(f"{name} is not JSON")

    try:
        value = json.loads(text, parse_constant=refuse_constant)
        if b"\\u" in text if isinstance(text, bytes) else "\\u" in text:
            json.dumps(value, ensure_ascii=False).encode()  # fails for half a surrogate pair
    except (ValueError, RecursionError) as error:
        raise ApiError(400, "malformed_json", f"the body is not JSON: {error}"[:300]) from error
    return value


def field_path(location: tuple[int | str, ...]) -> str:
    """A path like `messages[0].content[1].text`, without the names that pydantic adds for alternatives."""
    path = ""
    before: int | str = ""
    for key in location:
        if isinstance(key, int):
            path += f"[{key}]"
        elif (
            key != "str"
            and not key.startswith("list[")
            and not (isinstance(before, int) and key in PART_TYPES)
        ):
            path += f".{key}" if path else key
        before = key
    return path


def option_error(error: ValidationError) -> ApiError:
    """The error of an invalid request, with the path of the field."""
    found = [(field_path(e["loc"]), e) for e in error.errors(include_url=False, include_context=False)]
    # `content` may be a string or a list. The error that lies deepest belongs to the alternative that was meant.
    path, first = max(
        found, key=lambda pair: (pair[0].count(".") + pair[0].count("["), pair[1]["type"] != "string_type")
    )
    wanted = " or ".join(dict.fromkeys(e["msg"] for at, e in found if at == path))
    got = "" if isinstance(first["input"], dict | list) else f" (got {str(first['input'])[:80]!r})"
    part = first["type"].startswith("union_tag") or (".content[" in path and path.endswith(".type"))
    code = "unknown_content_part" if part else "invalid_option"
    return ApiError(400, code, f"{path}: {wanted}{got}"[:400], param=path)


def check_extra(
    extra: Mapping[str, Any], neutral: Mapping[str, tuple[Any, ...]], path: str = ""
) -> list[str]:
    """Raises ApiError 400 for a field that is not implemented and not at a neutral value.

    Returns the paths of the fields that nobody knows here, and which are ignored.
    """
    unknown: list[str] = []
    for name, value in extra.items():
        param = f"{path}{name[:80]}"
        if name in IGNORED_FIELDS or value is None or extra.get(TOOL_FIELDS.get(name, "")) == "none":
            continue
        if name not in neutral:
            unknown.append(param)
        # `True == 1` in Python, so booleans and numbers are compared separately.
        elif not any(isinstance(value, bool) == isinstance(n, bool) and value == n for n in neutral[name]):
            wanted = " or ".join(json.dumps(n) for n in neutral[name])
            if name in TOOL_FIELDS:  # the model calls no tools; most clients can be told not to offer them
                wanted += f' or {TOOL_FIELDS[name]} "none"'
            message = f"{param}: not supported here" + (f", wanted {wanted}" if wanted else "")
            raise ApiError(400, "unsupported_parameter", message, param=param)
    return unknown


def parse_request(value: Any) -> tuple[ChatRequest, list[str]]:
    """The checked request, and the names of the fields that are ignored.

    Raises ApiError 400 with the path of the invalid field.
    """
    if not isinstance(value, dict):
        raise ApiError(400, "invalid_request", "the body is not a JSON object")
    try:
        request = ChatRequest.model_validate(value)
    except ValidationError as error:
        raise option_error(error) from error
    return request, check_extra(request.model_extra or {}, CHAT_NEUTRAL_VALUES)
