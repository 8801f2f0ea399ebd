"""The decoder: admission, pace, what each token could see, cancelling, taking up another's answer."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pytest

from services.adapters.prometheus_recorder import PrometheusRecorder
from services.llm_decoder.llm_decoder import LLMDecoder
from services.messages.dialog import (
    NO_CAMERA,
    DialogEnded,
    DialogEvent,
    DialogFailed,
    DialogRequest,
    DialogStarted,
    Message,
    PriorToken,
    TokenEvent,
)
from services.messages.video import Frame
from services.ports.frame_store import StoreLost
from services.settings import Settings
from tests.services.adapters.memory_frame_store import MemoryFrameStore

SHAPE = (9, 160)


def frame(camera: str, number: int, captured_s: float | None = None) -> Frame:
    """A frame with visual tokens of its own."""
    captured_s = time.time() if captured_s is None else captured_s
    tokens = np.random.default_rng(number).normal(size=SHAPE).astype(np.float32)
    return Frame(
        camera=camera,
        frame_id=f"{int(captured_s * 1000)}-{number}",
        captured_s=captured_s,
        shape=SHAPE,
        dtype="float32",
        visual_tokens=tokens.tobytes(),
        jpeg=b"",
    )


def question(camera: str, text: str = "What is there now?", **changes: object) -> DialogRequest:
    """A request with a name of its own."""
    request = DialogRequest(
        request_id=f"r{time.monotonic_ns()}",
        camera=camera,
        messages=[Message(role="user", text=text)],
        max_tokens=8,
        asked_s=time.time(),
    )
    return replace(request, **changes)  # type: ignore[arg-type]


class SometimesLost(MemoryFrameStore):
    """A store that can be taken away."""

    def __init__(self) -> None:
        super().__init__()
        self.lost = False
        self.noticed = threading.Event()

    def newer(self, after: object, *, block_s: float) -> list[Frame]:
        if self.lost:
            self.noticed.set()
            raise StoreLost("gone")
        return super().newer(after, block_s=block_s)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def store() -> SometimesLost:
    return SometimesLost()


@pytest.fixture(scope="module")
def decoder(random_folder: Path, store: SometimesLost) -> Iterator[LLMDecoder]:
    decoder = LLMDecoder(
        random_folder,
        Settings(max_dialogs=4, max_prompt_tokens=64, max_completion_tokens=256),
        store,
        recorder=PrometheusRecorder("llm_decoder"),
    )
    yield decoder
    decoder.close()


async def collect(stream: AsyncIterator[list[DialogEvent]]) -> list[DialogEvent]:
    return [event async for events in stream for event in events]


def tokens_of(events: Sequence[DialogEvent]) -> list[TokenEvent]:
    return [event for event in events if isinstance(event, TokenEvent)]


async def until(
    stream: AsyncGenerator[list[DialogEvent]], enough: Callable[[list[TokenEvent]], bool]
) -> list[TokenEvent]:
    """Read a stream until what came is enough."""
    tokens: list[TokenEvent] = []
    async for events in stream:
        tokens += tokens_of(events)
        if tokens and enough(tokens):
            return tokens
    raise AssertionError(f"the stream ended after {len(tokens)} tokens")


async def test_an_answer_starts_names_its_frames_and_ends(decoder: LLMDecoder, store: SometimesLost) -> None:
    newest = frame("one", 1)
    store.append(newest, capacity=16)
    events = await collect(decoder.decode(question("one")))
    assert isinstance(events[0], DialogStarted)
    assert isinstance(events[-1], DialogEnded)
    tokens = tokens_of(events)
    assert events[-1].num_completion_tokens == len(tokens) > 0
    assert {token.frame_id for token in tokens} == {newest.frame_id}
    for token in tokens:
        assert token.frame_age_ms == pytest.approx((token.generated_s - newest.captured_s) * 1000)


async def test_a_question_without_a_camera_is_answered_from_its_text(decoder: LLMDecoder) -> None:
    events = await collect(decoder.decode(question(NO_CAMERA)))
    assert isinstance(events[0], DialogStarted)
    assert isinstance(events[-1], DialogEnded)
    tokens = tokens_of(events)
    assert len(tokens) == events[-1].num_completion_tokens > 0
    seen = {(token.frame_id, token.captured_s, token.frame_age_ms, token.stale) for token in tokens}
    assert seen == {(None, None, None, False)}
    again = await collect(decoder.decode(question(NO_CAMERA, visual_context="frozen", num_frames=2)))
    assert [token.token_id for token in tokens_of(again)] == [token.token_id for token in tokens]


async def test_a_new_frame_is_seen_while_the_answer_is_spoken(
    decoder: LLMDecoder, store: SometimesLost
) -> None:
    store.append(frame("two", 1), capacity=16)
    stream = decoder.decode(question("two", max_tokens=256, tokens_per_second=50.0))
    await until(stream, lambda tokens: len(tokens) >= 2)
    newer = frame("two", 2)
    store.append(newer, capacity=16)
    tokens = await until(stream, lambda tokens: tokens[-1].frame_id == newer.frame_id)
    assert tokens[-1].captured_s == newer.captured_s
    await stream.aclose()


async def test_a_frozen_answer_sees_only_what_was_there_at_the_question(
    decoder: LLMDecoder, store: SometimesLost
) -> None:
    first = frame("three", 1)
    store.append(first, capacity=16)
    frozen = decoder.decode(
        question("three", max_tokens=200, tokens_per_second=100.0, visual_context="frozen")
    )
    live = decoder.decode(question("three", max_tokens=200, tokens_per_second=100.0))
    spoken = await until(frozen, lambda tokens: len(tokens) >= 2)
    newer = frame("three", 2)
    store.append(newer, capacity=16)
    seen = await until(live, lambda tokens: tokens[-1].frame_id == newer.frame_id)
    spoken += await until(frozen, lambda tokens: tokens[-1].generated_s > seen[-1].generated_s)
    assert {token.frame_id for token in spoken} == {first.frame_id}
    await frozen.aclose()
    await live.aclose()


async def test_the_pace_is_kept(decoder: LLMDecoder, store: SometimesLost) -> None:
    store.append(frame("four", 1), capacity=16)
    tokens = tokens_of(await collect(decoder.decode(question("four", max_tokens=6, tokens_per_second=20.0))))
    assert len(tokens) == 6
    assert (
        median(b.generated_s - a.generated_s for a, b in pairwise(tokens)) > 0.02
    )  # one that was late may be caught up
    assert tokens[-1].generated_s - tokens[0].generated_s == pytest.approx(5 / 20, abs=0.15)


async def test_more_than_fit_are_told_when_to_come_back(decoder: LLMDecoder, store: SometimesLost) -> None:
    store.append(frame("five", 1), capacity=16)
    streams = [decoder.decode(question("five", max_tokens=200, tokens_per_second=10.0)) for _ in range(4)]
    for stream in streams:
        await until(stream, lambda tokens: len(tokens) >= 1)
    (refused,) = await collect(decoder.decode(question("five")))
    assert isinstance(refused, DialogFailed)
    assert refused.status == 429
    assert refused.retry_after_s
    for stream in streams:
        await stream.aclose()
    events = await collect(decoder.decode(question("five")))
    assert isinstance(events[-1], DialogEnded)


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"text": "word " * 200}, "prompt_too_long"),
        ({"max_tokens": 100_000}, "bad_option"),
        ({"temperature": -1.0}, "bad_option"),
        ({"top_p": 7.0}, "bad_option"),
        ({"num_frames": 0}, "bad_option"),
    ],
)
async def test_bad_requests_say_what_was_got(
    decoder: LLMDecoder, store: SometimesLost, changes: dict[str, Any], code: str
) -> None:
    store.append(frame("six", 1), capacity=16)
    (failed,) = await collect(decoder.decode(question("six", **changes)))
    assert isinstance(failed, DialogFailed)
    assert (failed.status, failed.code) == (400, code)


async def test_a_camera_without_frames_is_409(decoder: LLMDecoder) -> None:
    (failed,) = await collect(decoder.decode(question("nobody")))
    assert isinstance(failed, DialogFailed)
    assert (failed.status, failed.code) == (409, "no_frame")


async def test_old_frames_are_called_stale(decoder: LLMDecoder, store: SometimesLost) -> None:
    store.append(frame("seven", 1, captured_s=time.time() - 1.0), capacity=16)
    strict = tokens_of(await collect(decoder.decode(question("seven", max_frame_age_ms=500.0))))
    easy = tokens_of(await collect(decoder.decode(question("seven", max_frame_age_ms=60_000.0))))
    assert all(token.stale for token in strict)
    assert not any(token.stale for token in easy)


async def test_answers_go_on_while_the_store_is_away(decoder: LLMDecoder, store: SometimesLost) -> None:
    store.append(frame("eight", 1), capacity=16)
    stream = decoder.decode(question("eight", max_tokens=256, tokens_per_second=50.0))
    await until(stream, lambda tokens: len(tokens) >= 2)
    store.lost = True
    assert await asyncio.to_thread(store.noticed.wait, 10)
    newer = frame("eight", 2)
    store.append(newer, capacity=16)
    tokens = await until(stream, lambda tokens: len(tokens) >= 5)
    assert all(token.frame_id != newer.frame_id for token in tokens)
    store.lost = False
    tokens = await until(stream, lambda tokens: tokens[-1].frame_id == newer.frame_id)
    assert tokens
    await stream.aclose()


async def test_an_answer_is_taken_up_where_another_left_it(decoder: LLMDecoder, store: SometimesLost) -> None:
    store.append(frame("nine", 1), capacity=16)
    request = question("nine", max_tokens=12)
    whole = tokens_of(await collect(decoder.decode(request)))
    spoken = tuple(PriorToken(token_id=t.token_id, generated_s=t.generated_s) for t in whole[:5])
    rest = tokens_of(await collect(decoder.decode(replace(request, request_id="again", prior_tokens=spoken))))
    assert [t.token_id for t in rest] == [t.token_id for t in whole[5:]]
    assert "".join(t.text for t in whole) == "".join(t.text for t in whole[:5]) + "".join(
        t.text for t in rest
    )


async def test_many_cameras_at_once_get_what_they_get_alone(
    decoder: LLMDecoder, store: SometimesLost
) -> None:
    for number in range(3):
        store.append(frame(f"many-{number}", number), capacity=16)
    alone = [tokens_of(await collect(decoder.decode(question(f"many-{n}")))) for n in range(3)]
    together = await asyncio.gather(*(collect(decoder.decode(question(f"many-{n}"))) for n in range(3)))
    for one, both in zip(alone, together, strict=True):
        assert [t.token_id for t in one] == [t.token_id for t in tokens_of(both)]


def talk(*texts: str) -> list[Message]:
    """User and assistant in turn."""
    return [Message(role="assistant" if n % 2 else "user", text=text) for n, text in enumerate(texts)]


async def test_a_chat_that_is_sent_again_is_not_read_again(decoder: LLMDecoder, store: SometimesLost) -> None:
    """Many turns: the client resends all of it, and only what is new is read."""
    store.append(frame("turns", 1), capacity=16)
    said = ["What is there?"]
    known: list[int] = []
    for _ in range(3):
        events = await collect(decoder.decode(question("turns", messages=talk(*said), max_tokens=5)))
        started = events[0]
        assert isinstance(started, DialogStarted)
        known.append(started.num_cached_tokens)
        assert started.num_cached_tokens < started.num_prompt_tokens
        said += ["".join(token.text for token in tokens_of(events)), "And what is there now?"]
    assert known[0] == 0 < known[1] < known[2]
    other = talk(*said[:-2], "something else", said[-1])
    events = await collect(decoder.decode(question("turns", messages=other, max_tokens=5)))
    assert isinstance(events[0], DialogStarted)
    assert events[0].num_cached_tokens == 0


async def test_the_oldest_turns_of_a_long_chat_are_dropped(decoder: LLMDecoder, store: SometimesLost) -> None:
    store.append(frame("long", 1), capacity=16)
    messages = [Message(role="system", text="Be short."), *talk(*["What is there now?"] * 41)]
    events = await collect(decoder.decode(question("long", messages=messages, max_tokens=3)))
    assert isinstance(events[0], DialogStarted)
    assert 32 < events[0].num_prompt_tokens <= 64
    assert isinstance(events[-1], DialogEnded)


async def test_the_chances_of_tokens_are_told_when_asked_for(
    decoder: LLMDecoder, store: SometimesLost
) -> None:
    store.append(frame("chances", 1), capacity=16)
    tokens = tokens_of(await collect(decoder.decode(question("chances", num_top_logprobs=3))))
    for token in tokens:
        own, *top = token.logprobs
        assert own == top[0]  # the likeliest one was taken
        assert len(top) == 3
        assert 0 > top[0].logprob >= top[1].logprob >= top[2].logprob
    forced = question("chances", logit_bias=((tokens[0].token_id, -100.0),), max_tokens=1)
    (other,) = tokens_of(await collect(decoder.decode(forced)))
    assert other.token_id != tokens[0].token_id
    assert other.logprobs == ()


async def test_a_long_prompt_is_read_beside_the_steps_of_others(
    random_folder: Path, store: SometimesLost
) -> None:
    """While it is read, in pieces, others get their tokens: more than one for each of them, whatever the machine."""
    store.append(frame("beside", 1), capacity=16)
    decoder = LLMDecoder(
        random_folder,
        Settings(max_dialogs=4, max_prompt_tokens=4000),
        store,
        recorder=PrometheusRecorder("llm_decoder"),
    )
    try:
        first = decoder.decode(question("beside", max_tokens=1000))
        before = await until(first, lambda tokens: len(tokens) >= 2)
        second = decoder.decode(question("beside", text="", messages=talk("word " * 300), max_tokens=1))
        events = asyncio.create_task(collect(second))
        meanwhile: list[TokenEvent] = []
        async for more in first:
            meanwhile += tokens_of(more)
            if events.done():
                break
        await first.aclose()
        (late,) = tokens_of(await events)
        between = [
            token for token in meanwhile if before[-1].generated_s < token.generated_s < late.generated_s
        ]
        assert len(between) > 3
    finally:
        decoder.close()
