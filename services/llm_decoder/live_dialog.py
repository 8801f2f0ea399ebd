"""A dialog while a decoder answers it: turns each generated token into events."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field

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
MIN_TOKENS_PER_S, MAX_TOKENS_PER_S = 0.1, 1000.0


def retryable_failure(status: int, code: str, message: str) -> DialogFailed:
    """A failure after which the client may try again soon."""
    return DialogFailed(status=status, code=code, message=message, retry_after_s=RETRY_AFTER_S)


def decoder_lost(reason: str) -> DialogFailed:
    """The failure of a dialog whose decoder cannot go on. The gateway sends the dialog to another one."""
    return retryable_failure(503, "decoder_lost", f"the decoder was lost, {reason}: ask again shortly")


@dataclass(slots=True, kw_only=True, eq=False)
class LiveDialog:
    """A dialog while it is answered. `emit` may be called from the engine's thread."""

    request: DialogRequest
    prompt_ids: list[int]
    prompt_text: str  # all messages through the chat template, including those that did not fit
    num_pinned_tokens: int  # first tokens of the prompt, which are never dropped
    text_stream: TextStream
    emit: Callable[[list[DialogEvent]], None]
    put_s: float = field(default_factory=time.monotonic)
    next_due_s: float = 0.0  # monotonic
    time_limit_s: float = math.inf  # longest answer, in wall-clock time
    ends_s: float = math.inf  # monotonic; the next token after it is the last one
    num_generated: int = 0
    clip_end_s: float | None = None  # for a private clip: its clock stands still at its end
    started_s: float = 0.0  # wall clock
    engine_id: str = ""  # of the engine's dialog, which may have had earlier turns
    required_frame: tuple[int, int] | None = None  # must be in the ring before the question is read
    answer: str = ""  # text so far

    def start(self) -> None:
        """The answer begins now, or goes on: then the time so far counts for its limit."""
        now_s = time.time()
        self.started_s = self.request.started_s or now_s
        self.next_due_s = time.monotonic()
        self.ends_s = self.next_due_s + self.time_limit_s - max(0.0, now_s - self.started_s)

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
            next_s = max(self.next_due_s + 1 / self.request.tokens_per_second, time.monotonic() - 1)
            self.next_due_s = min(next_s, max(self.ends_s, self.next_due_s))
        ends = token.finish_reason == "stop" and token.token_id in stop_ids
        text = "" if ends else self.text_stream.push(token.token_id)
        finished = "stop" if self.text_stream.stopped else token.finish_reason
        is_late = not finished and time.monotonic() >= self.ends_s
        if is_late:
            finished = "length"
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
        ended = DialogEnded(
            finish_reason=finished,
            num_prompt_tokens=len(self.prompt_ids),
            num_completion_tokens=self.num_generated,
            time_limit_s=self.time_limit_s if is_late else None,
        )
        return [event, ended]
