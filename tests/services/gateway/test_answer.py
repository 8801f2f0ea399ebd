"""One answer between decoder and reader: decode_with_retries, bounded, prompt."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import replace

import pytest

from services.gateway import answer as answer_module
from services.gateway.answer import MAX_QUEUED_LISTS, Answer
from services.gateway.metrics import GatewayMetrics
from services.messages.api_error import ApiError
from services.messages.dialog import (
    DialogEnded,
    DialogEvent,
    DialogFailed,
    DialogRequest,
    DialogStarted,
    Message,
    TokenEvent,
)

REQUEST = DialogRequest(request_id="r", camera="c", messages=[Message(role="user", text="?")])
STARTED = DialogStarted(num_prompt_tokens=3)
ENDED = DialogEnded(finish_reason="stop", num_prompt_tokens=3, num_completion_tokens=2)


def token(number: int) -> TokenEvent:
    return TokenEvent(
        token_id=number,
        text=f" {number}",
        generated_s=float(number),
        time_s=float(number),
        frame_id=f"{number}-0",
        captured_s=number - 0.1,
        frame_age_ms=100.0,
        stale=False,
    )


class Decoder:
    """Sends these lists of events; counts how many were taken."""

    def __init__(self, *lists: list[DialogEvent], then_waits: bool = False) -> None:
        self.num_taken = 0
        self.closed = asyncio.Event()
        self._lists = lists
        self._then_waits = then_waits

    async def decode(self, request: DialogRequest) -> AsyncGenerator[list[DialogEvent]]:
        try:
            for events in self._lists:
                self.num_taken += 1
                yield events
            if self._then_waits:
                await asyncio.Event().wait()
        finally:
            self.closed.set()


async def taken(answer: Answer) -> list[list[int]]:
    lists: list[list[int]] = []
    while (tokens := await answer.next_tokens()) is not None:
        lists.append([each.token_id for each in tokens])
    return lists


async def test_the_first_word_is_handed_on_at_once() -> None:
    decoder = Decoder([STARTED, token(0)], then_waits=True)
    answer = Answer(decoder.decode, REQUEST, GatewayMetrics())
    await answer.start()
    assert answer.num_prompt_tokens == 3
    tokens = await answer.next_tokens()
    assert tokens is not None
    assert [each.token_id for each in tokens] == [0]
    with pytest.raises(TimeoutError):
        await answer.next_tokens(0.01)
    await answer.close()
    assert decoder.closed.is_set()


async def test_a_reader_that_lags_gets_all_that_waits_and_then_the_end() -> None:
    decoder = Decoder([STARTED], [token(0)], [token(1), token(2)], [token(3), ENDED])
    answer = Answer(decoder.decode, REQUEST, GatewayMetrics())
    await answer.start()
    await decoder.closed.wait()
    assert await taken(answer) == [[0, 1, 2, 3]]
    assert answer.ended == ENDED
    assert await answer.next_tokens() is None
    await answer.close()


async def test_a_reader_that_does_not_read_holds_the_decoder_back() -> None:
    lists: list[list[DialogEvent]] = [[token(number)] for number in range(500)]
    decoder = Decoder([STARTED], *lists, [ENDED])
    answer = Answer(decoder.decode, REQUEST, GatewayMetrics())
    await answer.start()
    for _ in range(2000):  # turns of the loop: more than it takes to fill the queue
        await asyncio.sleep(0)
    assert decoder.num_taken <= MAX_QUEUED_LISTS + 3
    assert [number for numbers in await taken(answer) for number in numbers] == list(range(500))
    await answer.close()


async def test_a_refusal_is_raised_before_anything_is_said() -> None:
    refusal = DialogFailed(status=429, code="decoder_full", message="full", retry_after_s=4)
    answer = Answer(Decoder([refusal]).decode, REQUEST, GatewayMetrics())
    with pytest.raises(ApiError) as raised:
        await answer.start()
    assert (raised.value.status, raised.value.code, raised.value.retry_after_s) == (429, "decoder_full", 4)


async def test_words_before_a_failure_are_not_lost() -> None:
    failed = DialogFailed(status=500, code="engine_failed", message="failed")
    answer = Answer(Decoder([STARTED], [token(0)], [token(1), failed]).decode, REQUEST, GatewayMetrics())
    await answer.start()
    with pytest.raises(ApiError, match="engine_failed"):
        await taken(answer)
    assert [each.token_id for each in answer.tokens] == [0, 1]
    await answer.close()


async def test_a_full_fall_back_is_tried_again_with_what_was_spoken() -> None:
    requests: list[DialogRequest] = []
    full = DialogFailed(status=429, code="decoder_full", message="full")

    async def decode(request: DialogRequest) -> AsyncGenerator[list[DialogEvent]]:
        requests.append(request)
        if len(requests) == 2:
            yield [full]
            return
        yield [STARTED]
        if len(requests) == 1:
            yield [token(0)]
            return  # ends without a last word: lost
        yield [token(1)]
        yield [ENDED]

    answer = Answer(decode, REQUEST, GatewayMetrics())
    await answer.start()
    assert [number for numbers in await taken(answer) for number in numbers] == [0, 1]
    assert [[each.token_id for each in request.prior_tokens] for request in requests] == [[], [0], [0]]
    assert requests[1].prior_tokens[0].generated_s == 0.0
    await answer.close()


async def test_closing_counts_the_answer_as_over() -> None:
    metrics = GatewayMetrics()
    answer = Answer(Decoder([STARTED], then_waits=True).decode, REQUEST, metrics)
    await answer.start()
    assert b"streamchat_requests_running 1.0" in await metrics.recorder.exposition()
    await answer.close()
    await answer.close()
    told = await metrics.recorder.exposition()
    assert b"streamchat_requests_running 0.0" in told
    assert b"streamchat_requests_waiting 0.0" in told
    assert b"streamchat_e2e_request_latency_seconds_count 1.0" in told


LOST = DialogFailed(status=503, code="decoder_lost", message="it hangs")


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """What takes seconds takes tenths."""
    for name in ("START_TIMEOUT_S", "SILENCE_TIMEOUT_S", "CLOSE_TIMEOUT_S"):
        monkeypatch.setattr(answer_module, name, 0.1)
    monkeypatch.setattr(answer_module, "FIRST_BACKOFF_S", 0.001)


class Attempts:
    """Each attempt gets its own decoder; the last one's also the later attempts."""

    def __init__(self, *decoders: Decoder) -> None:
        self.requests: list[DialogRequest] = []
        self._decoders = decoders

    def decode(self, request: DialogRequest) -> AsyncGenerator[list[DialogEvent]]:
        self.requests.append(request)
        return self._decoders[min(len(self.requests), len(self._decoders)) - 1].decode(request)


@pytest.mark.usefixtures("soon")
@pytest.mark.parametrize("silent_from", [0, 1, 2])
async def test_a_decoder_that_hangs_is_replaced(silent_from: int) -> None:
    lists: list[list[DialogEvent]] = [[], [STARTED], [token(0)], []]
    hanging = Decoder(*lists[: 2 * silent_from], then_waits=True)
    well = Decoder([STARTED], [token(1)], [ENDED])
    attempts = Attempts(hanging, well)
    answer = Answer(attempts.decode, REQUEST, GatewayMetrics())
    await answer.start()
    wanted = [0, 1] if silent_from == 2 else [1]
    assert [number for numbers in await taken(answer) for number in numbers] == wanted
    assert hanging.closed.is_set()
    await answer.close()


@pytest.mark.usefixtures("soon")
async def test_no_decoder_anywhere_ends_in_503() -> None:
    attempts = Attempts(Decoder(then_waits=True))
    answer = Answer(attempts.decode, REQUEST, GatewayMetrics())
    async with asyncio.timeout(10):
        with pytest.raises(ApiError) as raised:
            await answer.start()
    assert (raised.value.status, raised.value.code) == (503, "decoder_lost")
    assert len(attempts.requests) == 4


async def test_a_decoder_that_never_admits_has_a_time_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answer_module, "ADMISSION_TIMEOUT_S", 0.2)

    async def decode(request: DialogRequest) -> AsyncGenerator[list[DialogEvent]]:
        while True:
            yield []
            await asyncio.sleep(0.01)

    answer = Answer(decode, REQUEST, GatewayMetrics())
    async with asyncio.timeout(10):
        with pytest.raises(ApiError) as raised:
            await answer.start()
    assert (raised.value.status, raised.value.code) == (503, "decoder_lost")


@pytest.mark.usefixtures("soon")
async def test_a_decoder_that_is_lost_says_so_and_another_one_goes_on() -> None:
    """Also at the first attempt. The dialog's clock goes on, and the first decoder's start is sent along."""
    first = replace(token(7), time_s=2.0)
    attempts = Attempts(Decoder([STARTED], [first], [LOST]), Decoder([STARTED], [token(8)], [ENDED]))
    answer = Answer(attempts.decode, REQUEST, GatewayMetrics())
    await answer.start()
    assert [number for numbers in await taken(answer) for number in numbers] == [7, 8]
    assert [request.started_s for request in attempts.requests] == [0.0, 5.0]
    await answer.close()


@pytest.mark.usefixtures("soon")
async def test_losses_of_long_ago_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answer_module, "FORGET_LOSSES_S", -1.0)
    lost = [Decoder([STARTED, token(number)]) for number in range(9)]
    attempts = Attempts(*lost, Decoder([STARTED, ENDED]))
    answer = Answer(attempts.decode, REQUEST, GatewayMetrics())
    await answer.start()
    assert [number for numbers in await taken(answer) for number in numbers] == list(range(9))
    await answer.close()


async def test_a_failure_in_the_gateway_itself_ends_the_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    answer = Answer(Decoder([STARTED], [token(0)], then_waits=True).decode, REQUEST, GatewayMetrics())

    def broken(tokens: object) -> None:
        if tokens:
            raise KeyError("a metric")

    monkeypatch.setattr(answer, "_measure", broken)
    await answer.start()
    async with asyncio.timeout(10):
        with pytest.raises(ApiError, match="KeyError"):
            await taken(answer)
    await answer.close()
