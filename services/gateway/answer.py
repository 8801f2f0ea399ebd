"""One answer, from the decoder to whoever reads it: bounded, measured, and surviving the decoder's death."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import suppress
from dataclasses import replace

from services.gateway.metrics import GatewayMetrics
from services.messages.api_error import ApiError
from services.messages.dialog import (
    DialogEnded,
    DialogEvent,
    DialogFailed,
    DialogRequest,
    DialogStarted,
    PriorToken,
    TokenEvent,
)
from services.ports.metric_catalogue import (
    FIRST_TOKEN,
    INTER_TOKEN,
    PROMPT_TOKENS,
    REDISPATCHES,
    REQUEST,
    REQUESTS,
    TOKENS,
)

Decode = Callable[[DialogRequest], AsyncIterator[list[DialogEvent]]]

MAX_REDISPATCHES = 3
FIRST_BACKOFF_S = 0.05  # then 4 times as long: a death is noticed within 0.2 s
MAX_QUEUED_LISTS = 64  # a reader further behind holds the decoder's stream back, not the gateway's memory

log = logging.getLogger(__name__)


async def close_stream(stream: AsyncIterator[list[DialogEvent]]) -> None:
    """Tell the decoder that nobody listens any more."""
    close = getattr(stream, "aclose", None)
    if close is not None:
        with suppress(Exception):  # the stream of a dead replica may fail again while it is closed
            await close()


async def steadfast(
    decode: Decode, request: DialogRequest, metrics: GatewayMetrics
) -> AsyncGenerator[list[DialogEvent], None]:
    """The dialog's events as if no decoder ever died.

    A stream that raises, or ends without a last word, has lost its decoder: the request goes out again with
    the tokens spoken so far, so the same answer goes on, nothing lost and nothing twice. Starts with exactly
    one DialogStarted or DialogFailed; ends with DialogEnded or DialogFailed (503 after the last try).
    """
    prior_tokens = list(request.prior_tokens)
    started = False
    for attempt in range(1 + MAX_REDISPATCHES):
        if attempt:
            metrics.recorder.count(REDISPATCHES)
            await asyncio.sleep(FIRST_BACKOFF_S * 4 ** (attempt - 1))
        stream = decode(replace(request, prior_tokens=tuple(prior_tokens)))
        try:
            async for events in stream:
                failed = events[-1] if events and isinstance(events[-1], DialogFailed) else None
                if failed and attempt and failed.status in (429, 503):
                    raise ConnectionError(failed.message)  # the fall-back cannot take it now: try again
                kept = [event for event in events if not (started and isinstance(event, DialogStarted))]
                started = started or any(isinstance(event, DialogStarted) for event in events)
                tokens = [event for event in kept if isinstance(event, TokenEvent)]
                prior_tokens += [
                    PriorToken(token_id=token.token_id, generated_s=token.generated_s) for token in tokens
                ]
                if kept:
                    yield kept
                if kept and isinstance(kept[-1], DialogEnded | DialogFailed):
                    return
            raise ConnectionError("the stream ended without a last event")
        except Exception as error:
            facts = (request.request_id, attempt, len(prior_tokens), error)
            log.warning("decoder lost: request=%s attempt=%d prior_tokens=%d %r", *facts)
        finally:
            await close_stream(stream)
    message = "the decoder was lost and no other could go on with the answer: ask again"
    yield [DialogFailed(status=503, code="decoder_lost", message=message, retry_after_s=1)]


def refusal(failed: DialogFailed) -> ApiError:
    """The decoder's refusal as the gateway's error."""
    return ApiError(failed.status, failed.code, failed.message, retry_after_s=failed.retry_after_s)


class Answer:
    """Iterate for lists of tokens as they come; afterwards `ended` is set. Raises ApiError when it failed.

    Close it in any case: closing early cancels the dialog in the decoder.
    """

    def __init__(self, decode: Decode, request: DialogRequest, metrics: GatewayMetrics) -> None:
        self.request = request
        self.num_prompt_tokens = 0
        self.num_cached_tokens = 0  # of them: read in earlier turns
        self.tokens: list[TokenEvent] = []  # handed to the reader so far
        self.ended: DialogEnded | None = None
        self._events = steadfast(decode, request, metrics)
        self._queue: asyncio.Queue[list[DialogEvent]] = asyncio.Queue(MAX_QUEUED_LISTS)
        self._metrics = metrics
        self._began_s = time.monotonic()
        self._last_generated_s: float | None = None
        self._waiting: list[DialogEvent] = []  # came with DialogStarted
        self._pump: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Wait until the dialog is admitted; raises ApiError when it is refused."""
        self._metrics.running.add(1)
        self._metrics.recorder.count(REQUESTS)
        self._pump = asyncio.create_task(self._fill())
        try:
            with self._metrics.waiting:
                events = await self._queue.get()
            if isinstance(events[0], DialogFailed):
                raise refusal(events[0])
            if not isinstance(events[0], DialogStarted):
                raise ApiError(500, "decoder_confused", "the decoder spoke before it had started")
            self.num_prompt_tokens = events[0].num_prompt_tokens
            self.num_cached_tokens = events[0].num_cached_tokens
            self._metrics.recorder.count(PROMPT_TOKENS, by=self.num_prompt_tokens)
            self._waiting = events[1:]
        except BaseException:
            await self.close()
            raise

    async def next_tokens(self, timeout_s: float | None = None) -> list[TokenEvent] | None:
        """All tokens made since the last call, at least one; None when the answer ended.

        Raises TimeoutError when nothing came in time (the answer goes on), ApiError when the answer failed.
        """
        while self.ended is None:
            events, self._waiting = self._waiting, []
            if not events:
                async with asyncio.timeout(timeout_s):
                    events = await self._queue.get()
            # A reader that lags gets all that waits at once, up to the last event, which is handled alone.
            while not self._queue.empty() and isinstance(events[-1], TokenEvent):
                events = events + self._queue.get_nowait()
            tokens = [event for event in events if isinstance(event, TokenEvent)]
            last = events[-1] if events else None
            if tokens and not isinstance(last, TokenEvent):
                self._waiting = events[-1:]
            elif isinstance(last, DialogFailed):
                raise refusal(last)
            elif isinstance(last, DialogEnded):
                self.ended = last
            if tokens:
                self.tokens += tokens
                return tokens
        return None

    async def close(self) -> None:
        """End the dialog, wherever it stands."""
        pump, self._pump = self._pump, None
        if pump is None:
            return
        pump.cancel()
        with suppress(asyncio.CancelledError):
            await pump
        self._metrics.running.add(-1)
        self._metrics.recorder.observe(REQUEST, time.monotonic() - self._began_s)

    async def _fill(self) -> None:
        try:
            async for events in self._events:
                self._measure([event for event in events if isinstance(event, TokenEvent)])
                await self._queue.put(events)
        finally:
            await self._events.aclose()

    def _measure(self, tokens: list[TokenEvent]) -> None:
        recorder = self._metrics.recorder
        for token in tokens:
            if self._last_generated_s is None:
                recorder.observe(FIRST_TOKEN, time.monotonic() - self._began_s)
            else:
                recorder.observe(INTER_TOKEN, max(0.0, token.generated_s - self._last_generated_s))
            self._last_generated_s = token.generated_s
        recorder.count(TOKENS, by=len(tokens))
