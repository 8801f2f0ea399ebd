"""One answer on its way from the decoder to its reader: bounded, measured, and resumed if the decoder dies."""

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
FIRST_BACKOFF_S = 0.05  # each later one is 4 times as long; Ray needs up to 0.2 s to notice a death
FORGET_LOSSES_S = 30.0
START_TIMEOUT_S = 10.0  # to the first list of a stream: Serve may have to wait for a replica
SILENCE_TIMEOUT_S = 4.0  # between two lists
ADMISSION_TIMEOUT_S = 60.0  # for all attempts until the dialog has started
CLOSE_TIMEOUT_S = 2.0
MAX_QUEUED_LISTS = 64  # a reader that lags further slows the decoder's stream down

log = logging.getLogger(__name__)


async def close_stream(stream: AsyncIterator[list[DialogEvent]]) -> None:
    """Tell the decoder that the stream has no reader any more."""
    close = getattr(stream, "aclose", None)
    if close is not None:
        with suppress(Exception):  # the stream of a dead replica may fail again, or hang, while it is closed
            async with asyncio.timeout(CLOSE_TIMEOUT_S):
                await close()


async def decode_with_retries(
    decode: Decode, request: DialogRequest, metrics: GatewayMetrics
) -> AsyncGenerator[list[DialogEvent], None]:
    """The dialog's events. If the decoder dies or hangs, another one resumes the answer.

    A stream that raises, ends without a last event, or is silent for too long has lost its decoder. The request is
    then sent again with the tokens so far, so that the answer continues without losing or repeating a token. The first
    event is DialogStarted or DialogFailed, the last is DialogEnded or DialogFailed (503 after the last attempt).
    """
    prior_tokens, started_s = list(request.prior_tokens), request.started_s
    started, attempt = False, 0
    while attempt <= MAX_REDISPATCHES:
        if attempt:
            metrics.recorder.count(REDISPATCHES)
            await asyncio.sleep(FIRST_BACKOFF_S * 4 ** (attempt - 1))
        began_s = time.monotonic()
        stream = decode(replace(request, prior_tokens=tuple(prior_tokens), started_s=started_s))
        try:
            async for events in until_silent(stream):
                failed = events[-1] if events and isinstance(events[-1], DialogFailed) else None
                if failed and (failed.code == "decoder_lost" or (attempt and failed.status in (429, 503))):
                    raise ConnectionError(failed.message)  # or the other replica is full: try again
                new_events = [event for event in events if not (started and isinstance(event, DialogStarted))]
                started = started or any(isinstance(event, DialogStarted) for event in events)
                tokens = [event for event in new_events if isinstance(event, TokenEvent)]
                if tokens and not started_s:
                    started_s = tokens[0].generated_s - tokens[0].time_s
                prior_tokens += [
                    PriorToken(token_id=token.token_id, generated_s=token.generated_s) for token in tokens
                ]
                if new_events:
                    yield new_events
                if new_events and isinstance(new_events[-1], DialogEnded | DialogFailed):
                    return
            raise ConnectionError("the stream ended without a last event")
        except Exception as error:
            facts = (request.request_id, attempt, len(prior_tokens), error)
            log.warning("decoder lost: request=%s attempt=%d prior_tokens=%d %r", *facts)
        finally:
            await close_stream(stream)
        # Decoders that were lost long ago do not count: a long answer outlives a rolling upgrade.
        attempt = 1 if time.monotonic() - began_s > FORGET_LOSSES_S else attempt + 1
    message = "the decoder was lost and no other could go on with the answer: ask again"
    yield [DialogFailed(status=503, code="decoder_lost", message=message, retry_after_s=1)]


async def until_silent(stream: AsyncIterator[list[DialogEvent]]) -> AsyncGenerator[list[DialogEvent], None]:
    """The lists of a stream. Raises TimeoutError if the next one does not come in time.

    A decoder that is well sends a list every second, an empty one if nothing has happened.
    """
    limit_s = START_TIMEOUT_S
    while True:
        async with asyncio.timeout(limit_s):
            events = await anext(stream, None)
        if events is None:
            return
        yield events
        limit_s = SILENCE_TIMEOUT_S


def api_error_of(failed: DialogFailed) -> ApiError:
    """The decoder's failure as an error of the API."""
    return ApiError(failed.status, failed.code, failed.message, retry_after_s=failed.retry_after_s)


class Answer:
    """The answer to one question. After its last tokens, `ended` is set.

    It must be closed in every case. Closing it early cancels the dialog in the decoder.
    """

    def __init__(
        self,
        decode: Decode,
        request: DialogRequest,
        metrics: GatewayMetrics,
        on_close: Callable[[], None] = lambda: None,
    ) -> None:
        self.request = request
        self.num_prompt_tokens = 0
        self.num_cached_tokens = 0  # prompt tokens reused from earlier turns
        self.tokens: list[TokenEvent] = []  # returned by `next_tokens` so far
        self.ended: DialogEnded | None = None
        self._events = decode_with_retries(decode, request, metrics)
        self._queue: asyncio.Queue[list[DialogEvent]] = asyncio.Queue(MAX_QUEUED_LISTS)
        self._metrics = metrics
        self._on_close = on_close
        self._started_s = time.monotonic()
        self._last_generated_s: float | None = None
        self._pending: list[DialogEvent] = []  # received, but not handled yet
        self._reading: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Wait until the dialog is admitted. Raises ApiError if it is refused."""
        self._metrics.running.add(1)
        self._metrics.recorder.count(REQUESTS)
        self._reading = asyncio.create_task(self._read_events())
        try:
            with self._metrics.waiting:
                async with asyncio.timeout(ADMISSION_TIMEOUT_S):
                    events = await self._queue.get()
            if isinstance(events[0], DialogFailed):
                raise api_error_of(events[0])
            if not isinstance(events[0], DialogStarted):
                raise ApiError(500, "decoder_confused", "the decoder spoke before it had started")
            self.num_prompt_tokens = events[0].num_prompt_tokens
            self.num_cached_tokens = events[0].num_cached_tokens
            self._metrics.recorder.count(PROMPT_TOKENS, by=self.num_prompt_tokens)
            self._pending = events[1:]
        except TimeoutError as error:
            await self.close()
            message = (
                f"no decoder could start the answer within {ADMISSION_TIMEOUT_S:.0f} s: ask again shortly"
            )
            raise ApiError(503, "decoder_lost", message, retry_after_s=1) from error
        except BaseException:
            await self.close()
            raise

    async def next_tokens(self, timeout_s: float | None = None) -> list[TokenEvent] | None:
        """All tokens since the last call, at least one; None when the answer has ended.

        Raises TimeoutError if none came in time (the answer continues), ApiError if the answer failed.
        """
        while self.ended is None:
            events, self._pending = self._pending, []
            if not events:
                async with asyncio.timeout(timeout_s):
                    events = await self._queue.get()
            # A reader that lags gets all waiting tokens at once. The last event is handled separately.
            while not self._queue.empty() and isinstance(events[-1], TokenEvent):
                events = events + self._queue.get_nowait()
            tokens = [event for event in events if isinstance(event, TokenEvent)]
            last = events[-1] if events else None
            if tokens and not isinstance(last, TokenEvent):
                self._pending = events[-1:]
            elif isinstance(last, DialogFailed):
                raise api_error_of(last)
            elif isinstance(last, DialogEnded):
                self.ended = last
            if tokens:
                self.tokens += tokens
                return tokens
        return None

    async def close(self) -> None:
        """End the dialog, finished or not."""
        reading, self._reading = self._reading, None
        if reading is None:
            return
        self._on_close()
        reading.cancel()
        with suppress(asyncio.CancelledError):
            await reading
        self._metrics.running.add(-1)
        self._metrics.recorder.observe(REQUEST, time.monotonic() - self._started_s)

    async def _read_events(self) -> None:
        """Fill the queue. The last list ends with DialogEnded or DialogFailed, whatever happens."""
        try:
            async for events in self._events:
                await self._queue.put(events)
                self._measure([event for event in events if isinstance(event, TokenEvent)])
        except Exception as error:
            log.exception("the answer to request %s could not be read", self.request.request_id)
            message = f"the gateway failed: {type(error).__name__}"
            await self._queue.put([DialogFailed(status=500, code="internal_error", message=message)])
        finally:
            await self._events.aclose()

    def _measure(self, tokens: list[TokenEvent]) -> None:
        recorder = self._metrics.recorder
        for token in tokens:
            if self._last_generated_s is None:
                recorder.observe(FIRST_TOKEN, time.monotonic() - self._started_s)
            else:
                recorder.observe(INTER_TOKEN, max(0.0, token.generated_s - self._last_generated_s))
            self._last_generated_s = token.generated_s
        recorder.count(TOKENS, by=len(tokens))
