"""Turns a checked chat request into a question for the decoder: the text, and one camera, clip or picture."""

from __future__ import annotations

import asyncio
import base64
import re
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal
from urllib.parse import unquote

from services.access.caller import Caller
from services.gateway.chat.request import (
    CHARACTERS_PER_TOKEN,
    ChatMessage,
    ChatRequest,
    StreamChatOptions,
    TextPart,
)
from services.gateway.question_service import QuestionService
from services.messages.api_error import ApiError
from services.messages.camera_name import camera_id
from services.messages.dialog import NO_CAMERA, DialogRequest, Message
from services.messages.video import PlayedClip

MAX_STOPS = 4
ROLES: dict[str, Literal["system", "user", "assistant"]] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "tool": "user",
    "function": "user",
    "assistant": "assistant",
}
MAX_TOKEN_ID_DIGITS = 10
MEDIA_TYPE = re.compile(r"data:(video|image)/[\w.+-]+", re.ASCII | re.IGNORECASE)
MAX_HEADER_CHARACTERS = 512  # of a data URI
URL_SAFE_BASE64 = bytes.maketrans(b"-_", b"+/")
WHITE_SPACE = b" \t\r\n\f"
ESCAPES = {b"%2B": b"+", b"%2F": b"/", b"%3D": b"=", b"%0A": b"", b"%0D": b"", b"%20": b""}


@dataclass(frozen=True, slots=True, kw_only=True)
class VisualSource:
    """The camera, clip or picture that the question is about, and the path of the field that names it."""

    url: str
    kind: str  # of the content part: "video" or "image"
    param: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A question for the decoder. `clip` is set if the request brought a clip or picture."""

    request: DialogRequest
    clip: PlayedClip | None = None


def text_of(message: ChatMessage) -> str:
    """The text of a message: its text parts, joined by line breaks."""
    if isinstance(message.content, str):
        return message.content
    return "\n".join(part.text for part in message.content or () if isinstance(part, TextPart))


def messages_of(chat: ChatRequest) -> list[Message]:
    """The texts of the conversation. The result of an earlier model's tool call is told like the user's words."""
    return [Message(role=ROLES[message.role], text=text_of(message)) for message in chat.messages]


def sources_of(message: ChatMessage, path: str) -> list[VisualSource]:
    """The cameras, clips and pictures in a message."""
    if message.content is None or isinstance(message.content, str):
        return []
    sources: list[VisualSource] = []
    for index, part in enumerate(message.content):
        if isinstance(part, TextPart):
            continue
        kind = "video" if part.type == "video_url" else "image"
        url = part.video_url.url if part.type == "video_url" else part.image_url.url
        sources.append(
            VisualSource(url=url.strip(), kind=kind, param=f"{path}.content[{index}].{part.type}.url")
        )
    if sources and message.role != "user":
        raise ApiError(400, "misplaced_picture", "only user messages show something", param=sources[0].param)
    return sources


def visual_source(messages: Sequence[ChatMessage]) -> VisualSource | None:
    """The source in the newest user message that has one, which must be the only one there. None: text alone."""
    named = [sources_of(message, f"messages[{index}]") for index, message in enumerate(messages)]
    newest = next((sources for sources in reversed(named) if sources), None)
    if newest is None:
        return None
    if len(newest) > 1:
        message = f"got {len(newest)} things to look at in one message, wanted one camera, clip or picture"
        raise ApiError(400, "several_pictures", message, param=newest[1].param)
    return newest[0]


def check_text(messages: Sequence[Message], max_prompt_tokens: int, param: str = "messages") -> None:
    """Raises ApiError 400 unless the last message is a user's question and the text may fit the prompt."""
    if messages[-1].role != "user" or not messages[-1].text.strip():
        raise ApiError(
            400, "empty_question", "the last message must be the user's and hold a question", param=param
        )
    num_characters = sum(len(message.text) for message in messages)
    limit = max_prompt_tokens * CHARACTERS_PER_TOKEN
    if num_characters > limit:
        message = f"got {num_characters} characters of text, more than {max_prompt_tokens} tokens can hold"
        raise ApiError(400, "prompt_too_long", message, param=param)


def camera_named(source: VisualSource) -> str | None:
    """The id in `camera://ID`, or of the camera with that name; None for a data URI. Other URLs are never fetched."""
    scheme, separator, rest = source.url.partition(":")
    if scheme.lower() == "camera" and rest.startswith("//"):
        if source.kind != "video":
            raise ApiError(
                400,
                "invalid_url",
                "a camera is named in a video_url, not in an image_url",
                param=source.param,
            )
        return camera_id(unquote(rest[2:].rstrip("/")))
    if scheme.lower() == "data" and separator:
        return None
    if scheme.lower() in ("http", "https"):
        message = "addresses are never fetched: send the clip or picture itself as a data URI"
        raise ApiError(400, "url_not_fetched", message, param=source.param)
    message = f"got {source.url[:40]!r}, wanted camera://ID or data:{source.kind}/...;base64,..."
    raise ApiError(400, "invalid_url", message, param=source.param)


def decode_base64(text: str) -> bytes:
    """The bytes of a base64 text, which may have the forms that `media_of` names. Raises ValueError."""
    digits = text.encode("ascii")
    if b"%" in digits:
        for escape, character in ESCAPES.items():
            digits = digits.replace(escape, character).replace(escape.lower(), character)
    digits = digits.translate(URL_SAFE_BASE64, WHITE_SPACE).rstrip(b"=")
    return base64.b64decode(digits + b"=" * (-len(digits) % 4), validate=True)


def media_of(source: VisualSource) -> bytes:
    """The bytes in a data URI. Raises ApiError 400 if it is invalid or of another kind than the part.

    Forgiving like a browser: capitals, line breaks, percent-encoding and missing padding are accepted. So is the
    alphabet that is safe in URLs.
    """
    header, comma, _ = source.url[:MAX_HEADER_CHARACTERS].partition(",")
    media_type, *parameters = (part.strip() for part in header.split(";"))
    kind = MEDIA_TYPE.fullmatch(media_type)
    is_base64 = bool(comma and parameters) and parameters[-1].lower() == "base64"
    if not is_base64 or kind is None or kind[1].lower() != source.kind:
        message = f"got {source.url[:40]!r}, wanted data:{source.kind}/...;base64,..."
        raise ApiError(400, "invalid_data_uri", message, param=source.param)
    try:
        media = decode_base64(source.url[len(header) + 1 :])
    except ValueError as error:  # also binascii.Error
        raise ApiError(
            400, "invalid_data_uri", f"the data URI is not base64: {error}", param=source.param
        ) from error
    if not media:
        raise ApiError(400, "invalid_data_uri", "the data URI holds nothing", param=source.param)
    return media


def max_tokens_of(request: ChatRequest, limit: int) -> int:
    """`max_completion_tokens`, or the older `max_tokens`. If both are given, they must be equal."""
    newer, older = request.max_completion_tokens, request.max_tokens
    if newer is not None and older is not None and newer != older:
        message = f"max_tokens is {older} and max_completion_tokens is {newer}: give one of them"
        raise ApiError(400, "invalid_option", message, param="max_tokens")
    wanted = newer if newer is not None else older
    if wanted is not None and wanted > limit:
        param = "max_completion_tokens" if newer is not None else "max_tokens"
        raise ApiError(400, "invalid_option", f"{param}: got {wanted}, wanted at most {limit}", param=param)
    return limit if wanted is None else wanted


def stop_strings_of(stop: str | list[str] | None) -> tuple[str, ...]:
    """The stop strings: one string, or a list of up to four."""
    stops = () if stop is None else (stop,) if isinstance(stop, str) else tuple(stop)
    if len(stops) > MAX_STOPS or "" in stops:
        message = f"stop: got {len(stops)} texts, wanted at most {MAX_STOPS}, none of them empty"
        raise ApiError(400, "invalid_option", message, param="stop")
    return stops


def logit_bias_of(logit_bias: dict[str, float] | None) -> tuple[tuple[int, float], ...]:
    """OpenAI's `logit_bias`: token ids as strings, and the values added to their logits."""
    for token in logit_bias or {}:
        if not token.isascii() or not token.isdigit() or len(token) > MAX_TOKEN_ID_DIGITS:
            message = f"logit_bias: got {token[:40]!r}, wanted token ids"
            raise ApiError(400, "invalid_option", message, param="logit_bias")
    return tuple((int(token), bias) for token, bias in (logit_bias or {}).items())


def num_top_logprobs_of(chat: ChatRequest) -> int | None:
    """How many of the most likely tokens to send with each generated one; None: no logprobs at all."""
    if chat.top_logprobs and not chat.logprobs:
        message = "top_logprobs: wanted with `logprobs: true` only"
        raise ApiError(400, "invalid_option", message, param="top_logprobs")
    return (chat.top_logprobs or 0) if chat.logprobs else None


def dialog_request(
    camera: str,
    messages: Sequence[Message],
    options: StreamChatOptions,
    *,
    max_tokens: int,
    max_answer_s: float,
) -> DialogRequest:
    """A request with our own options. The caller adds OpenAI's options. Raises ApiError 400."""
    if options.time_limit_s is not None and options.time_limit_s > max_answer_s:
        message = f"time_limit_s: got {options.time_limit_s:g}, wanted at most {max_answer_s:g}"
        raise ApiError(400, "invalid_option", message, param="streamchat.time_limit_s")
    return DialogRequest(
        request_id=uuid.uuid4().hex,
        camera=camera,
        messages=tuple(messages),
        max_tokens=max_tokens,
        visual_context=options.visual_context or "live",
        num_frames=options.frames,
        tokens_per_second=options.tokens_per_second,
        max_frame_age_ms=options.max_frame_age_ms,
        time_limit_s=options.time_limit_s,
        min_p=options.min_p or 0.0,
        repetition_penalty=options.repetition_penalty or 1.0,
        asked_s=time.time(),
    )


async def question_of(questions: QuestionService, caller: Caller, chat: ChatRequest) -> Question:
    """Check the request, and play its clip if it brings one. Raises ApiError."""
    settings = questions.settings
    questions.check_model(chat.model)
    messages = messages_of(chat)
    check_text(messages, settings.max_prompt_tokens)
    max_tokens = max_tokens_of(chat, settings.max_completion_tokens)
    stops = stop_strings_of(chat.stop)
    logit_bias, num_top_logprobs = logit_bias_of(chat.logit_bias), num_top_logprobs_of(chat)
    options = chat.streamchat or StreamChatOptions()
    options, camera, clip = await seen_camera(questions, caller, visual_source(chat.messages), options)
    request = dialog_request(
        camera, messages, options, max_tokens=max_tokens, max_answer_s=settings.max_answer_s
    )
    likeliest = chat.top_p == 0  # which leaves one token to choose from
    request = replace(
        request,
        stop=stops,
        temperature=0.0 if likeliest else chat.temperature or 0.0,
        top_p=1.0 if likeliest or chat.top_p is None else chat.top_p,
        frequency_penalty=chat.frequency_penalty or 0.0,
        presence_penalty=chat.presence_penalty or 0.0,
        logit_bias=logit_bias,
        num_top_logprobs=num_top_logprobs,
        seed=chat.seed,
    )
    return Question(request=request, clip=clip)


async def seen_camera(
    questions: QuestionService, caller: Caller, source: VisualSource | None, options: StreamChatOptions
) -> tuple[StreamChatOptions, str, PlayedClip | None]:
    """The options, the camera to look at, and the clip that was played into it if the question brought one.

    Without a source (a chat client asks for a title, say) the answer comes from the text alone.
    """
    if source is None:
        return options, NO_CAMERA, None
    camera = camera_named(source)
    if camera is None:
        options, clip = await play_clip(questions, source, options)
        return options, clip.camera, clip
    await questions.check_camera(caller, camera, source.param)
    return options, camera, None


async def play_clip(
    questions: QuestionService, source: VisualSource, options: StreamChatOptions
) -> tuple[StreamChatOptions, PlayedClip]:
    """Play the clip before it is asked about. The answer sees the newest frames of the whole clip."""
    if options.visual_context == "live":
        message = "a clip is asked about when it is over: leave visual_context out, or say frozen"
        raise ApiError(400, "invalid_option", message, param="streamchat.visual_context")
    media = await asyncio.to_thread(media_of, source)
    clip = await questions.play_clip(media, source.kind, source.param)
    return options.model_copy(update={"visual_context": "frozen", "max_frame_age_ms": None}), clip
