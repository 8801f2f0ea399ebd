"""A gateway that listens on a port, with a frame store in memory and a scripted decoder."""

from __future__ import annotations

import asyncio
import io
import socket
import threading
import time
from collections.abc import AsyncGenerator, Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import uvicorn
from fastapi import FastAPI
from PIL import Image, ImageDraw

from services.gateway.gateway import make_app
from services.messages.dialog import (
    DialogEnded,
    DialogEvent,
    DialogFailed,
    DialogRequest,
    DialogStarted,
    TokenEvent,
)
from services.messages.video import ClipRefused, Frame, PlayedClip
from services.settings import Settings
from tests.services.adapters.memory_frame_store import MemoryFrameStore

MODEL = "streamchat-test"
WORDS = ("A", " red", " bus", " drives", " past", " the", " tree", ".")


def jpeg(text: str, at: float = 0.5, size: tuple[int, int] = (320, 180), colour: str = "#2563eb") -> bytes:
    """A picture of a disc on its way from left (0) to right (1), with a line of text."""
    image = Image.new("RGB", size, "#0f172a")
    draw = ImageDraw.Draw(image)
    radius = size[1] // 6
    x = radius + at * (size[0] - 2 * radius)
    draw.ellipse((x - radius, size[1] / 2 - radius, x + radius, size[1] / 2 + radius), fill=colour)
    draw.text((8, 6), text, fill="white")
    data = io.BytesIO()
    image.save(data, "JPEG", quality=80)
    return data.getvalue()


def frame(camera: str, number: int, captured_s: float | None = None, picture: bytes | None = None) -> Frame:
    """Frame `number` of a camera, captured now unless told; its id says both."""
    captured_s = time.time() if captured_s is None else captured_s
    return Frame(
        camera=camera,
        frame_id=f"{int(captured_s * 1000)}-{number}",
        captured_s=captured_s,
        shape=(1, 2),
        dtype="float32",
        visual_tokens=bytes(8),
        jpeg=jpeg(f"{camera} {number}") if picture is None else picture,
    )


@dataclass
class ScriptedDecoder:
    """Generates `words`, each with the newest frame in the store, after the request's prior tokens.

    `dies_after` holds, for each request in turn, the number of tokens before its replica dies (None: it lives).
    """

    store: MemoryFrameStore
    words: Sequence[str] = WORDS
    pace_s: float = 0.0
    refusal: DialogFailed | None = None
    fails_after: int | None = None
    holds_after: int | None = None
    dies_after: list[int | None] = field(default_factory=lambda: list[int | None]())
    requests: list[DialogRequest] = field(default_factory=lambda: list[DialogRequest]())
    num_open: int = 0

    def start_over(self, *, words: Sequence[str] = WORDS, pace_s: float = 0.0) -> None:
        """Reset the script and the recorded requests, once all dialogs have ended."""
        wait_for(lambda: self.num_open == 0)
        self.__dict__.update(ScriptedDecoder(self.store, words=words, pace_s=pace_s).__dict__)

    async def decode(self, request: DialogRequest) -> AsyncGenerator[list[DialogEvent]]:
        """Stands in for LLMDecoder.decode."""
        self.requests.append(request)
        dies_after = self.dies_after.pop(0) if self.dies_after else None
        self.num_open += 1
        try:
            async for events in self._events(request, dies_after):
                yield events
        finally:
            self.num_open -= 1

    async def _events(
        self, request: DialogRequest, dies_after: int | None
    ) -> AsyncGenerator[list[DialogEvent]]:
        if self.refusal is not None:
            yield [self.refusal]
            return
        yield [DialogStarted(num_prompt_tokens=7)]
        words = list(enumerate(self.words))[len(request.prior_tokens) : request.max_tokens]
        for made, (index, word) in enumerate(words):
            if made == dies_after:
                raise ConnectionError("the replica died")
            if index == self.fails_after:
                yield [DialogFailed(status=500, code="engine_failed", message="the engine failed")]
                return
            if index == self.holds_after:
                await asyncio.Event().wait()
            await asyncio.sleep(self.pace_s)
            yield [self._token(request, index, word)]
            if request.time_limit_s and time.time() - request.asked_s >= request.time_limit_s:
                num = index + 1
                yield [
                    DialogEnded(
                        finish_reason="length",
                        num_prompt_tokens=7,
                        num_completion_tokens=num,
                        time_limit_s=request.time_limit_s,
                    )
                ]
                return
        reason = "length" if request.max_tokens < len(self.words) else "stop"
        yield [DialogEnded(finish_reason=reason, num_prompt_tokens=7, num_completion_tokens=len(self.words))]

    def _token(self, request: DialogRequest, index: int, word: str) -> TokenEvent:
        newest = self.store.newest_picture(request.camera)
        now_s = time.time()
        age_ms = None if newest is None else (now_s - newest.captured_s) * 1000
        oldest_ms = request.max_frame_age_ms
        return TokenEvent(
            token_id=index,
            text=word,
            generated_s=now_s,
            time_s=now_s - request.asked_s,
            frame_id=newest.frame_id if newest else None,
            captured_s=newest.captured_s if newest else None,
            frame_age_ms=age_ms,
            stale=age_ms is not None and oldest_ms is not None and age_ms > oldest_ms,
        )


@dataclass
class ScriptedPlayer:
    """Plays every clip except b"broken"."""

    store: MemoryFrameStore
    played: list[tuple[bytes, str]] = field(default_factory=lambda: list[tuple[bytes, str]]())

    async def play_clip(self, media: bytes, kind: str) -> PlayedClip:
        """Stands in for the clip player."""
        if media == b"broken":
            raise ClipRefused(400, "clip_without_video", "the clip has no video stream")
        self.played.append((media, kind))
        camera = f"clip-{len(self.played)}"
        self.store.append(frame(camera, 1, 3.5), capacity=4)
        self.store.append(frame(camera, 2, 4.0), capacity=4)
        return PlayedClip(camera=camera, num_frames=2, end_s=4.0)


@dataclass
class Gateway:
    """A listening gateway and the parts behind it."""

    url: str
    store: MemoryFrameStore
    decoder: ScriptedDecoder
    player: ScriptedPlayer
    app: FastAPI


@contextmanager
def listening(app: FastAPI) -> Generator[str]:
    """Serve the app on a free port of this machine; yields its address."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=2, ws="websockets-sansio")
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        wait_for(lambda: server.started)
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(10)


@contextmanager
def gateway(settings: Settings | None = None) -> Generator[Gateway]:
    """A gateway with the camera `front-door`, which has three frames."""
    store = MemoryFrameStore()
    for number in range(3):
        store.append(frame("front-door", number, time.time() + number / 1000), capacity=4)
    decoder, player = ScriptedDecoder(store), ScriptedPlayer(store)
    app = make_app(settings or Settings(access="open"), MODEL, store, decoder.decode, player.play_clip)
    with listening(app) as url:
        yield Gateway(url, store, decoder, player, app)


def wait_for(condition: Callable[[], object], timeout_s: float = 10.0) -> None:
    """Return as soon as the condition holds. Raises AssertionError after the timeout."""
    ends_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < ends_s, "the condition did not come about in time"
        time.sleep(0.005)
