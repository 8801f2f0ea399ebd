"""A dialog while a decoder answers it: turns each generated token into events."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from model.engine.dialog import GeneratedToken
from services.llm_decoder.text_stream import TextStream
from services.messages.dialog import (
    NO_CAMERA,
    DialogEnded,
    DialogEvent,
    DialogFailed,
    DialogRequest,
    TokenEvent,
    TokenLogprob,
)

RETRY_AFTER_S = 2.0


def retryable_failure(status: int, code: str, message: str) -> DialogFailed:
    """A failure after which the client may try again soon."""
    return DialogFailed(status=status, code=code, message=message, retry_after_s=RETRY_AFTER_S)


@dataclass(slots=True, kw_only=True)
class LiveDialog:
    """A dialog while it is answered. `emit` may be called from the engine's thread."""

    request: DialogRequest
    prompt_ids: list[int]
    prompt_text: str  # all messages through the chat template, including those that did not fit
    num_pinned_tokens: int  # first tokens of the prompt, which are never dropped
    text_stream: TextStream
    emit: Callable[[list[DialogEvent]], None]
    next_due_s: float = 0.0  # wall clock
    num_generated: int = 0
    clip_end_s: float | None = None  # for a private clip: its clock stands still at its end
    started_s: float = 0.0
    engine_id: str = ""  # of the engine's dialog, which may have had earlier turns
    required_frame: tuple[int, int] | None = None  # must be in the ring before the question is read
    answer: str = ""  # text so far

    def add_token(
        self,
        token: GeneratedToken,
        generated_s: float,
        logprobs: Sequence[TokenLogprob],
        stop_ids: Collection[int],
        stale_after_s: float,
    ) -> list[DialogEvent]:
        """The events of a generated token: a TokenEvent, and DialogEnded after the last one."""
        self.num_generated += 1
        if self.request.tokens_per_second:
            # Relative to the due time, not to now: the rate holds although steps take time. At most 1 s behind.
            self.next_due_s = max(self.next_due_s + 1 / self.request.tokens_per_second, generated_s - 1)
        ends = token.finish_reason == "stop" and token.token_id in stop_ids
        text = "" if ends else self.text_stream.push(token.token_id)
        finished = "stop" if self.text_stream.stopped else token.finish_reason
        if finished:
            text += self.text_stream.finish()
        self.answer += text
        now_s = generated_s if self.clip_end_s is None else self.clip_end_s
        age_ms = None if token.captured_s is None else (now_s - token.captured_s) * 1000
        oldest_ms = self.request.max_frame_age_ms or stale_after_s * 1000
        event = TokenEvent(
            token_id=token.token_id,
            text=text,
            generated_s=generated_s,
            time_s=generated_s - self.started_s,
            frame_id=token.frame_id,
            captured_s=token.captured_s,
            frame_age_ms=age_ms,
            stale=self.request.camera != NO_CAMERA and (age_ms is None or age_ms > oldest_ms),
            logprobs=logprobs,
        )
        if not finished:
            return [event]
        counts = {"num_prompt_tokens": len(self.prompt_ids), "num_completion_tokens": self.num_generated}
        return [event, DialogEnded(finish_reason=finished, **counts)]
