"""What `POST /v1/chat/completions` sends: OpenAI's objects, with our own fields under `streamchat`."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import Any, Literal

from pydantic import BaseModel, Field

from services.gateway.answer import Answer
from services.messages.dialog import DialogEnded, DialogRequest, TokenEvent, TokenLogprob
from services.messages.percentile import percentile
from services.messages.video import PlayedClip

Limit = Literal["tokens", "time"]


class TokenFacts(BaseModel):
    """One token and the newest frame that it could see."""

    text: str = Field(description="may be empty: a character can span tokens")
    time_s: float = Field(description="seconds since the question, on the dialog's own clock")
    frame_id: str | None = Field(
        description="the frame; GET /v1/cameras/{camera}/frame.jpg?frame= shows it; null: there was none"
    )
    captured_s: float | None = Field(description="when the camera captured the frame, in seconds since 1970")
    frame_age_ms: float | None = Field(description="how old the frame was when the token was made")
    stale: bool = Field(description="the frame was older than max_frame_age_ms")


class TokensFacts(BaseModel):
    """Our key in each chunk with tokens, and in the one that says `length`."""

    tokens: list[TokenFacts]
    limit: Limit | None = Field(
        default=None, description="which limit ended an answer whose finish_reason is length"
    )


class AnswerFacts(TokensFacts):
    """Our key in a whole answer."""

    frame_age_p50_ms: float | None = Field(description="middle age of the frames behind the tokens")
    frame_age_p95_ms: float | None = Field(description="19 of 20 frames were younger")


class PromptTokensDetails(BaseModel):
    """OpenAI's."""

    cached_tokens: int = Field(description="read in earlier turns, and not again")


class Usage(BaseModel):
    """OpenAI's; visual tokens are not counted, they cost a text token nothing."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails


class TopLogprob(BaseModel):
    """OpenAI's: a likely token."""

    token: str
    logprob: float
    bytes: list[int]


class ChatCompletionTokenLogprob(TopLogprob):
    """OpenAI's: the generated token, and the most likely ones."""

    top_logprobs: list[TopLogprob]


class Logprobs(BaseModel):
    """OpenAI's."""

    content: list[ChatCompletionTokenLogprob]
    refusal: None = None


class ReplyMessage(BaseModel):
    """The answer."""

    role: Literal["assistant"] = "assistant"
    content: str
    refusal: None = None


class Choice(BaseModel):
    """There is always one."""

    index: int = 0
    message: ReplyMessage
    finish_reason: Literal["stop", "length"]
    logprobs: Logprobs | None = None


class ChatCompletion(BaseModel):
    """A whole answer."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[Choice]
    usage: Usage
    streamchat: AnswerFacts


class Delta(BaseModel):
    """The next piece of the answer."""

    role: Literal["assistant"] | None = None
    content: str | None = None


class ChunkChoice(BaseModel):
    """There is always one, but none in the chunk that brings the usage."""

    index: int = 0
    delta: Delta
    finish_reason: Literal["stop", "length"] | None = None
    logprobs: Logprobs | None = None


class ChatCompletionChunk(BaseModel):
    """One server-sent event of a streamed answer; `[DONE]` follows the last, or an error ends all."""

    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    choices: list[ChunkChoice]
    usage: Usage | None = None
    streamchat: TokensFacts | None = None


def usage_of(answer: Answer) -> Usage:
    """OpenAI's token counts of a finished answer."""
    return Usage(
        prompt_tokens=answer.num_prompt_tokens,
        completion_tokens=len(answer.tokens),
        total_tokens=answer.num_prompt_tokens + len(answer.tokens),
        prompt_tokens_details=PromptTokensDetails(cached_tokens=answer.num_cached_tokens),
    )


def logprobs_of(tokens: Sequence[TokenEvent]) -> Logprobs | None:
    """The tokens' logprobs in OpenAI's format; None if the request did not ask for them."""

    def fields(entry: TokenLogprob) -> dict[str, Any]:
        return {"token": entry.text, "logprob": entry.logprob, "bytes": list(entry.text.encode())}

    content = [
        ChatCompletionTokenLogprob(
            **fields(token.logprobs[0]),
            top_logprobs=[TopLogprob(**fields(entry)) for entry in token.logprobs[1:]],
        )
        for token in tokens
        if token.logprobs
    ]
    return Logprobs(content=content) if content else None


def facts_of(token: TokenEvent, clip: PlayedClip | None) -> TokenFacts:
    """Our fields of one token. The clock of a clip stands still at its end."""
    age_ms = token.frame_age_ms
    if clip is not None and token.captured_s is not None:
        age_ms = max(0.0, clip.end_s - token.captured_s) * 1000
    return TokenFacts(
        text=token.text,
        time_s=round(token.time_s, 4),
        frame_id=token.frame_id,
        captured_s=token.captured_s,
        frame_age_ms=None if age_ms is None else round(age_ms, 2),
        stale=token.stale,
    )


def frame_age_percentiles(ages_or_none_ms: Iterable[float | None]) -> dict[str, float | None]:
    """The two fields that summarise the ages of an answer's frames; null for an answer that saw none."""
    ages_ms = [age_ms for age_ms in ages_or_none_ms if age_ms is not None]
    return {
        "frame_age_p50_ms": percentile(ages_ms, 0.5) if ages_ms else None,
        "frame_age_p95_ms": percentile(ages_ms, 0.95) if ages_ms else None,
    }


class Reply:
    """Makes the objects of one reply. They share an id, a creation time and a model."""

    def __init__(self, request: DialogRequest, model_name: str, clip: PlayedClip | None) -> None:
        self.id = f"chatcmpl-{request.request_id}"
        self._created = int(time.time())
        self._model = model_name
        self._clip = clip

    def chunk(
        self,
        *,
        role: Literal["assistant"] | None = None,
        tokens: Sequence[TokenEvent] = (),
        ended: DialogEnded | None = None,
    ) -> ChatCompletionChunk:
        """The first chunk (with the role), a chunk with tokens, or the last one (with the finish reason)."""
        delta = Delta()
        if role:
            delta = Delta(role=role, content="")
        elif tokens:
            delta = Delta(content="".join(token.text for token in tokens))
        facts = TokensFacts(tokens=[facts_of(token, self._clip) for token in tokens])
        limit = ended.limit if ended else None
        if limit:
            facts.limit = limit
        choice = ChunkChoice(index=0, delta=delta, finish_reason=ended.finish_reason if ended else None)
        if (logprobs := logprobs_of(tokens)) is not None:
            choice.logprobs = logprobs
        chunk = self._chunk([choice])
        return chunk.model_copy(update={"streamchat": facts}) if tokens or limit else chunk

    def usage_chunk(self, usage: Usage) -> ChatCompletionChunk:
        """The chunk with the usage, for a client that asked for it."""
        return self._chunk([]).model_copy(update={"usage": usage})

    def completion(self, tokens: Sequence[TokenEvent], ended: DialogEnded, usage: Usage) -> ChatCompletion:
        """The whole answer as one object."""
        facts = [facts_of(token, self._clip) for token in tokens]
        ages_ms = [fact.frame_age_ms for fact in facts]
        message = ReplyMessage(content="".join(token.text for token in tokens))
        return ChatCompletion(
            id=self.id,
            created=self._created,
            model=self._model,
            choices=[
                Choice(message=message, finish_reason=ended.finish_reason, logprobs=logprobs_of(tokens))
            ],
            usage=usage,
            streamchat=AnswerFacts(tokens=facts, limit=ended.limit, **frame_age_percentiles(ages_ms)),
        )

    def _chunk(self, choices: list[ChunkChoice]) -> ChatCompletionChunk:
        return ChatCompletionChunk(id=self.id, created=self._created, model=self._model, choices=choices)
