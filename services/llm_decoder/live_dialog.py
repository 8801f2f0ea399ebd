"""A dialog while a decoder answers it: what its client is told of each token."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from model.engine.engine import GeneratedToken
from services.llm_decoder.text_stream import TextStream
from services.messages.dialog import (
    DialogEnded,
    DialogEvent,
    DialogFailed,
    DialogRequest,
    TokenEvent,
    TokenLogprob,
)

RETRY_AFTER_S = 2.0


def refusal(status: int, code: str, message: str) -> DialogFailed:
    """What is told to a client that may come again soon."""
    return DialogFailed(status=status, code=code, message=message, retry_after_s=RETRY_AFTER_S)


@dataclass(slots=True, kw_only=True)
class LiveDialog:
    """A dialog while it is answered. `emit` may be called from the engine's thread."""

    request: DialogRequest
    prompt: list[int]
    prompt_text: str  # all messages through the chat template, those too that did not fit into `prompt`
    num_kept: int  # first tokens of the prompt that are never dropped
    text: TextStream
    emit: Callable[[list[DialogEvent]], None]
    next_due_s: float = 0.0  # wall clock
    num_made: int = 0
    clip_end_s: float | None = None  # set for a private clip, whose clock stands still at its end
    started_s: float = 0.0
    name: str = ""  # of the engine's dialog: that of its first turn
    awaits: tuple[int, int] | None = None  # frame that must be in the ring before the question is read
    answer: str = ""  # said so far

    def said(
        self,
        made: GeneratedToken,
        generated_s: float,
        logprobs: Sequence[TokenLogprob],
        stop_ids: Collection[int],
        stale_after_s: float,
    ) -> list[DialogEvent]:
        """Take a token that was made: its TokenEvent, and DialogEnded after the last one."""
        self.num_made += 1
        if self.request.tokens_per_second:
            # From when it was due, not from now: the pace holds although steps take time. Never more than one behind.
            self.next_due_s = max(self.next_due_s + 1 / self.request.tokens_per_second, generated_s - 1)
        ends = made.finish_reason == "stop" and made.token_id in stop_ids
        text = "" if ends else self.text.push(made.token_id)
        finished = "stop" if self.text.stopped else made.finish_reason
        if finished:
            text += self.text.finish()
        self.answer += text
        assert made.frame_id is not None  # no dialog opens on an empty ring
        assert made.captured_s is not None
        now_s = generated_s if self.clip_end_s is None else self.clip_end_s
        age_ms = (now_s - made.captured_s) * 1000
        event = TokenEvent(
            token_id=made.token_id,
            text=text,
            generated_s=generated_s,
            time_s=generated_s - self.started_s,
            frame_id=made.frame_id,
            captured_s=made.captured_s,
            frame_age_ms=age_ms,
            stale=age_ms > (self.request.max_frame_age_ms or stale_after_s * 1000),
            logprobs=logprobs,
        )
        if not finished:
            return [event]
        counts = {"num_prompt_tokens": len(self.prompt), "num_completion_tokens": self.num_made}
        return [event, DialogEnded(finish_reason=finished, **counts)]
