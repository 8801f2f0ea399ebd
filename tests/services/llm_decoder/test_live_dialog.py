"""A live dialog when its decoder hangs, when it is cancelled late, or when it takes too long."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncGenerator, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from services.adapters.prometheus_recorder import PrometheusRecorder
from services.llm_decoder import llm_decoder
from services.llm_decoder.llm_decoder import LLMDecoder
from services.messages.dialog import DialogEnded, DialogEvent, DialogFailed, PriorToken
from services.settings import Settings
from tests.services.adapters.memory_frame_store import MemoryFrameStore
from tests.services.llm_decoder.test_llm_decoder import collect, frame, question, tokens_of, until


@pytest.fixture
def store() -> MemoryFrameStore:
    store = MemoryFrameStore()
    store.append(frame("a", 1), capacity=16)
    return store


@pytest.fixture
def decoder(random_folder: Path, store: MemoryFrameStore) -> Iterator[LLMDecoder]:
    settings = Settings(max_dialogs=4, max_completion_tokens=512, max_answer_s=2.0)
    decoder = LLMDecoder(random_folder, settings, store, recorder=PrometheusRecorder("llm_decoder"))
    yield decoder
    decoder.close()


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """What takes seconds takes tenths."""
    for name, value in {"HEARTBEAT_S": 0.05, "TELL_AFTER_S": 0.8, "STUCK_AFTER_S": 1.0}.items():
        monkeypatch.setattr(llm_decoder, name, value)


async def reason_to_replace(decoder: LLMDecoder) -> str:
    """Wait until the decoder is unhealthy."""
    while True:
        try:
            decoder.check()
        except RuntimeError as error:
            return str(error)
        await asyncio.sleep(0.01)


async def test_a_late_end_of_the_first_attempt_does_not_end_the_second(decoder: LLMDecoder) -> None:
    request = question("a", max_tokens=20, tokens_per_second=50.0)
    first = decoder.decode(request)
    await until(first, lambda tokens: len(tokens) >= 2)
    second = decoder.decode(request)
    tokens = await until(second, lambda tokens: len(tokens) >= 2)
    await first.aclose()
    events = await collect(second)
    assert isinstance(events[-1], DialogEnded)
    assert len(tokens) + len(tokens_of(events)) == 20


async def test_a_question_can_lower_the_time_limit_and_not_raise_it(decoder: LLMDecoder) -> None:
    for wanted_s, limit_s in ((0.5, 0.5), (9.0, 2.0)):
        request = question("a", max_tokens=500, tokens_per_second=6.0, time_limit_s=wanted_s)
        ended = (await collect(decoder.decode(request)))[-1]
        assert isinstance(ended, DialogEnded)
        assert (ended.finish_reason, ended.time_limit_s, ended.limit) == ("length", limit_s, "time")


async def test_an_answer_ends_at_its_time_limit(decoder: LLMDecoder) -> None:
    events = await collect(decoder.decode(question("a", max_tokens=500, tokens_per_second=3.0)))
    assert isinstance(events[-1], DialogEnded)
    assert (events[-1].finish_reason, events[-1].time_limit_s) == ("length", 2.0)
    tokens = tokens_of(events)
    assert len(tokens) == events[-1].num_completion_tokens <= 8
    assert tokens[-1].time_s == pytest.approx(2.0, abs=0.5)


async def test_the_time_of_the_first_attempt_counts(decoder: LLMDecoder) -> None:
    now_s = time.time()
    spoken = (PriorToken(token_id=1, generated_s=now_s - 0.5),)
    request = question("a", max_tokens=500, tokens_per_second=3.0)
    events = await collect(decoder.decode(replace(request, prior_tokens=spoken, started_s=now_s - 1.5)))
    assert 1.5 < tokens_of(events)[0].time_s < 2.5  # goes on, and does not start again
    assert isinstance(events[-1], DialogEnded)
    assert len(tokens_of(events)) <= 3


async def test_a_clock_that_is_set_back_silences_nobody(
    decoder: LLMDecoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = decoder.decode(question("a", max_tokens=20, tokens_per_second=20.0))
    await until(stream, lambda tokens: len(tokens) >= 2)
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() - 3600)
    async with asyncio.timeout(10):
        assert isinstance((await collect(stream))[-1], DialogEnded)


@pytest.mark.parametrize("pace", [1e-11, 0.09, 1001.0, float("nan")])
async def test_a_pace_out_of_range_is_refused(decoder: LLMDecoder, pace: float) -> None:
    (failed,) = await collect(decoder.decode(question("a", tokens_per_second=pace)))
    assert isinstance(failed, DialogFailed)
    assert (failed.status, failed.code) == (400, "bad_option")
    assert "tokens_per_second: got" in failed.message


@pytest.mark.usefixtures("soon")
async def test_a_decoder_that_hangs_tells_its_dialogs_and_is_unhealthy(
    decoder: LLMDecoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = decoder.decode(question("a", max_tokens=500, tokens_per_second=50.0))
    await until(stream, lambda tokens: len(tokens) >= 2)
    decoder.check()
    engine, go_on = decoder._loop._engine, threading.Event()  # pyright: ignore[reportPrivateUsage]
    monkeypatch.setattr(engine, "step", lambda _: go_on.wait(60) and [])
    try:
        async with asyncio.timeout(10):
            failed = (await collect(stream))[-1]
            assert isinstance(failed, DialogFailed)
            assert (failed.status, failed.code) == (503, "decoder_lost")
            assert "the decode loop hangs" in await reason_to_replace(decoder)
    finally:
        monkeypatch.undo()
        go_on.set()


@pytest.mark.usefixtures("soon")
async def test_a_follower_that_hangs_is_unhealthy(decoder: LLMDecoder, store: MemoryFrameStore) -> None:
    go_on = threading.Event()
    store.newer = lambda after, *, block_s: go_on.wait(60) and []  # type: ignore[method-assign]
    stream = decoder.decode(question("a"))
    await collect(stream)
    try:
        async with asyncio.timeout(10):
            assert "the frame follower hangs" in await reason_to_replace(decoder)
    finally:
        go_on.set()


@pytest.mark.usefixtures("soon")
async def test_a_slow_dialog_says_that_its_decoder_is_well(decoder: LLMDecoder) -> None:
    stream: AsyncGenerator[list[DialogEvent]] = decoder.decode(question("a", tokens_per_second=0.5))
    async for events in stream:
        if not events:
            break
    await stream.aclose()


async def test_a_store_that_fails_strangely_does_not_end_the_follower(
    decoder: LLMDecoder, store: MemoryFrameStore
) -> None:
    newer, calls = store.newer, threading.Semaphore(0)

    def strange(*args: object, **options: object) -> object:
        calls.release()
        raise KeyError("strange")

    store.newer = strange  # type: ignore[method-assign, assignment]
    stream = decoder.decode(question("a", max_tokens=512, tokens_per_second=50.0))
    await until(stream, lambda tokens: len(tokens) >= 1)
    assert await asyncio.to_thread(calls.acquire, timeout=10)
    store.newer = newer  # type: ignore[method-assign]
    new = frame("a", 2)
    store.append(new, capacity=16)
    await until(stream, lambda tokens: tokens[-1].frame_id == new.frame_id)
    await stream.aclose()
