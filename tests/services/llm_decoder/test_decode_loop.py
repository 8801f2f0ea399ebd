"""The decode loop: what one dialog does wrong ends this dialog alone, and the end of the thread is told to everyone."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from model.checkpoint.folder import load_model
from model.checkpoint.tokenizer import load_tokenizer
from model.engine.engine import Engine
from services.adapters.prometheus_recorder import PrometheusRecorder
from services.llm_decoder.decode_loop import DecodeLoop
from services.llm_decoder.event_queue import EventQueue
from services.llm_decoder.live_dialog import LiveDialog
from services.llm_decoder.metrics import LLMDecoderMetrics
from services.llm_decoder.suspended_dialogs import SuspendedDialogs
from services.llm_decoder.text_stream import TextStream
from services.messages.dialog import DialogEnded, DialogEvent, DialogFailed, PriorToken, TokenEvent
from services.messages.video import Frame
from tests.services.frame_fifo.running_fifo import until
from tests.services.llm_decoder.test_llm_decoder import frame, question


class Harm:
    """Something that goes wrong in one dialog: its text stream, of which the engine's thread reads."""

    def __init__(self, at_token: Callable[[], None]) -> None:
        self._at_token = at_token
        self.stopped = False

    def push(self, token_id: int) -> str:
        self._at_token()
        return ""

    def finish(self) -> str:
        return ""


class BadSeed(int):
    def __format__(self, spec: str) -> str:
        raise RuntimeError("a seed that cannot be used")


class Loop:
    """A decode loop on a random model, and dialogs on one camera."""

    def __init__(self, folder: Path) -> None:
        self.tokenizer = load_tokenizer(folder)
        self.engine = Engine(load_model(folder), max_dialogs=8)
        self.recorder = PrometheusRecorder("llm_decoder")
        self.loop = DecodeLoop(
            self.engine,
            stop_ids=[],
            suspended=SuspendedDialogs(self.tokenizer),
            token_text=str,
            stale_after_s=5.0,
            forget_after_s=60.0,
            on_forget=lambda _: None,
            metrics=LLMDecoderMetrics(self.engine, self.recorder),
        )
        self.frames = [frame("a", 1)]

    def ask(self, *, frames: list[Frame] | None = None, **changes: Any) -> EventQueue:
        """Put a dialog; its events come in the queue."""
        queue = EventQueue()
        mine = {each: changes.pop(each) for each in ("prompt_ids", "text_stream") if each in changes}
        fields: dict[str, Any] = {"prompt_ids": [5, 9, 3], "text_stream": TextStream(self.tokenizer)}
        dialog = LiveDialog(
            request=question("a", **changes),
            prompt_text="",
            num_pinned_tokens=0,
            emit=queue.put,
            **fields | mine,
        )
        self.loop.put_dialog(dialog, self.frames if frames is None else frames)
        return queue

    def poison(self) -> None:
        """NaN in the newest dialog's keys and values, as a broken kernel would leave them."""
        pages = list(self.engine.dialogs.values())[-1].pages
        with torch.inference_mode():
            for keys, values in self.engine._runner.text_cache.layers:  # pyright: ignore[reportPrivateUsage]
                keys[pages] = values[pages] = float("nan")


@pytest.fixture
async def made(random_folder: Path) -> AsyncIterator[Loop]:
    made = Loop(random_folder)
    made.loop.start()
    yield made
    made.loop.close()


async def events_of(queue: EventQueue) -> list[DialogEvent]:
    """All events up to the last one."""
    events: list[DialogEvent] = []
    async with asyncio.timeout(20):
        while not events or not isinstance(events[-1], DialogEnded | DialogFailed):
            events += await queue.take()
    return events


async def stream_of(queue: EventQueue) -> AsyncGenerator[DialogEvent]:
    while True:
        for event in await queue.take():
            yield event


def fail() -> None:
    raise RuntimeError("a text stream that fails")


HARMS: dict[str, tuple[Callable[[Loop], dict[str, Any]], int]] = {
    "NaN": (lambda made: {"text_stream": Harm(made.poison)}, 500),
    "text": (lambda _: {"text_stream": Harm(fail)}, 500),
    "taken up": (
        lambda _: {"text_stream": Harm(fail), "prior_tokens": (PriorToken(token_id=1, generated_s=0.0),)},
        500,
    ),
    "sampling": (lambda _: {"temperature": 1.0, "seed": BadSeed(3)}, 500),
    "prompt": (lambda _: {"prompt_ids": [5, 1.5, 3]}, 500),
    "token": (lambda _: {"prompt_ids": [5, 10**9, 3]}, 400),
    "temperature": (lambda _: {"temperature": 1e-39}, 400),
    "bias": (lambda _: {"logit_bias": ((1, 1e39),)}, 400),
}


@pytest.mark.parametrize("harm", HARMS)
async def test_what_one_dialog_does_wrong_ends_it_alone(made: Loop, harm: str) -> None:
    bystander = made.ask(max_tokens=100)
    stream = stream_of(bystander)
    while not isinstance(await anext(stream), TokenEvent):
        pass
    changes, status = HARMS[harm]
    failed = (await events_of(made.ask(**changes(made))))[-1]
    assert isinstance(failed, DialogFailed)
    assert failed.status == status
    rest = await events_of(bystander)
    assert isinstance(rest[-1], DialogEnded)
    assert rest[-1].num_completion_tokens == 100
    assert made.loop.alive
    again = (await events_of(made.ask()))[-1]
    assert isinstance(again, DialogEnded)
    assert not made.loop.progress.stuck_s > 2


@pytest.mark.parametrize("nan_last", [False, True])
async def test_what_is_not_finite_is_counted(made: Loop, nan_last: bool) -> None:
    made.frames = [frame("a", number, captured_s=time.time()) for number in range(2)]
    nan = np.full(made.frames[0].shape, np.nan, np.float32).tobytes()
    made.frames[nan_last] = replace(made.frames[nan_last], visual_tokens=nan)
    events = await events_of(made.ask(text_stream=Harm(made.poison)))
    assert isinstance(events[-1], DialogFailed)
    assert events[-1].code == "decoder_error"
    names = ("streamchat_engine_frames_skipped_total", "streamchat_engine_rows_failed_total")
    await until(lambda: [made.recorder.registry.get_sample_value(name) for name in names] == [1.0, 1.0])


async def test_a_pace_that_never_comes_stops_nobody(made: Loop) -> None:
    made.ask(tokens_per_second=1e-300)
    for _ in range(2):
        assert isinstance((await events_of(made.ask(tokens_per_second=1e9)))[-1], DialogEnded)


@pytest.mark.parametrize("context", ["live", "frozen"])
async def test_an_answer_is_taken_up_after_its_frames_have_gone(made: Loop, context: str) -> None:
    """The FIFO has rolled past the question, or the camera's clock is ahead."""
    ahead = [frame("a", number, time.time() + 3) for number in range(2)]
    spoken = (PriorToken(token_id=1, generated_s=time.time()),)
    events = await events_of(made.ask(frames=ahead, visual_context=context, prior_tokens=spoken))
    assert isinstance(events[-1], DialogEnded)
    assert [event.frame_id for event in events if isinstance(event, TokenEvent)]


async def test_all_are_told_when_the_thread_ends(made: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    first = made.ask(max_tokens=500, tokens_per_second=20.0)
    await first.take()

    def broken(allowed_s: float) -> bool:
        raise torch.AcceleratorError("the device is lost")

    monkeypatch.setattr(made.engine, "run_background", broken)
    for queue in (first, made.ask()):
        failed = (await events_of(queue))[-1]
        assert isinstance(failed, DialogFailed)
        assert (failed.status, failed.code) == (503, "decoder_lost")
    assert isinstance((await events_of(made.ask()))[-1], DialogFailed)  # after the end
    made.loop.close()
    assert not made.loop.alive


async def test_rounds_that_fail_again_and_again_end_the_thread(
    made: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue = made.ask(max_tokens=500, tokens_per_second=20.0)
    await queue.take()
    monkeypatch.setattr(made.engine, "is_prefilled", lambda _: fail())
    failed = (await events_of(queue))[-1]
    assert isinstance(failed, DialogFailed)
    assert failed.code == "decoder_lost"
