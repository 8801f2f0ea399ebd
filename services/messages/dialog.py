"""Messages between processes about one dialog: the request, and the events of its answer.

This module is light: no torch, no numpy, no client library.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

NO_CAMERA = ""  # the camera of a question that shows nothing: it is answered from its text alone


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One message of the conversation so far. The last one is the question."""

    role: Literal["system", "user", "assistant"]
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PriorToken:
    """A token that another replica generated before it died. The gateway resends it to resume the answer."""

    token_id: int
    generated_s: float  # wall clock


@dataclass(frozen=True, slots=True, kw_only=True)
class DialogRequest:
    """One question to one camera."""

    request_id: str
    camera: str  # or NO_CAMERA
    messages: Sequence[Message]
    max_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    logit_bias: Sequence[tuple[int, float]] = ()  # (token id, value added to its logit)
    num_top_logprobs: int | None = None  # None: no logprobs; n: each token's own and the n highest
    seed: int | None = None
    stop: Sequence[str] = ()
    visual_context: Literal["live", "frozen"] = "live"
    num_frames: int | None = None  # newest frames to see; None: the whole FIFO
    tokens_per_second: float | None = None  # None: as fast as it goes
    max_frame_age_ms: float | None = None  # older than this: the token says `stale`
    time_limit_s: float | None = None  # longest answer, in wall-clock time; None: as in the settings
    asked_s: float = 0.0  # wall clock at which the gateway received the question
    prior_tokens: Sequence[PriorToken] = ()  # the answer so far, when this request resumes it
    started_s: float = (
        0.0  # wall clock at which the resumed answer began: its tokens' `time_s` go on from there
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class DialogStarted:
    """First event of a dialog that was admitted."""

    num_prompt_tokens: int
    num_cached_tokens: int = 0  # prompt tokens reused from earlier turns


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenLogprob:
    """A token's text and the natural logarithm of its probability."""

    text: str
    logprob: float


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenEvent:
    """One text token and the newest frame that it could see."""

    token_id: int
    text: str  # may be empty: a character can span tokens
    generated_s: float  # wall clock at which the token left the engine
    time_s: float  # seconds since the question, on the dialog's own clock
    frame_id: str | None  # None: it could see no frame
    captured_s: float | None
    frame_age_ms: float | None  # generated_s - captured_s
    stale: bool
    logprobs: Sequence[TokenLogprob] = ()  # if requested: this token's, then those of the most likely tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class DialogEnded:
    """Last event of a dialog that ended well."""

    finish_reason: Literal["stop", "length"]
    num_prompt_tokens: int
    num_completion_tokens: int
    time_limit_s: float | None = None  # the answer was ended because it took this long

    @property
    def limit(self) -> Literal["tokens", "time"] | None:
        """Which limit ended the answer; None if it was complete."""
        if self.finish_reason != "length":
            return None
        return "tokens" if self.time_limit_s is None else "time"


@dataclass(frozen=True, slots=True, kw_only=True)
class DialogFailed:
    """Last event of a dialog that could not start or continue. The gateway sends it in OpenAI's error format."""

    status: int  # HTTP status: 400, 404, 409, 429, 500, 503
    code: str  # "unknown_camera", "no_frame", "prompt_too_long", "decoder_full", ...
    message: str  # says what was received and what is expected
    retry_after_s: float | None = None


DialogEvent = DialogStarted | TokenEvent | DialogEnded | DialogFailed
