"""A running `streamchat up` for benchmarks, its answers with times, and a count of its frames."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import httpx
import psutil

from model.checkpoint.fingerprint import encoder_fingerprint
from model.config import PROJECT_ROOT, SHIPPED_FOLDER
from services.adapters.redis_frame_store import RedisFrameStore
from services.local.embedded_servers import start_broker, start_store
from services.ports.frame_store import BEFORE_ALL

COMMAND = (sys.executable, "-m", "services.cli.main")
FPS = 5.0  # frames sampled per second of each camera
QUESTION = "Tell me what happens from now on."


@dataclass(slots=True)
class TimedAnswer:
    """One answer with the arrival time of each token."""

    asked_s: float
    arrived_s: list[float] = field(default_factory=list[float])
    ages_ms: list[float] = field(default_factory=list[float])


@contextlib.contextmanager
def running_process(
    command: Sequence[str], environment: dict[str, str] | None = None, **options: Any
) -> Generator[subprocess.Popen[str]]:
    """A process that ends with the block."""
    process = subprocess.Popen(command, env={**os.environ, **(environment or {})}, text=True, **options)
    try:
        yield process
    finally:
        process.terminate()
        process.wait(timeout=60)


class FrameCounter:
    """Follows the cameras' FIFOs and counts the frames that are missing."""

    def __init__(self, url: str, cameras: Sequence[str], fps: float = FPS) -> None:
        self._store, self._fps = RedisFrameStore(url, encoder=encoder_fingerprint(SHIPPED_FOLDER)), fps
        self._positions = dict.fromkeys(cameras, BEFORE_ALL)
        self.captured: dict[str, list[float]] = {camera: [] for camera in cameras}
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._ended.is_set():
            for frame in self._store.newer(self._positions, block_s=0.5):
                self._positions[frame.camera] = frame.frame_id
                self.captured[frame.camera].append(frame.captured_s)

    def stop(self) -> None:
        """End the thread."""
        self._ended.set()
        self._thread.join()
        self._store.close()

    def missing(self, begin_s: float, end_s: float) -> tuple[int, int]:
        """Frames that came between two wall-clock times, and those that a camera of `fps` lacks between them."""
        came = lost = 0
        for times in self.captured.values():
            inside = [t for t in times if begin_s <= t <= end_s]
            came += len(inside)
            lost += sum(max(round((b - a) * self._fps) - 1, 0) for a, b in pairwise(inside))
        return came, lost


async def ask(http: httpx.AsyncClient, camera: str, max_tokens: int, **options: Any) -> TimedAnswer:
    """One question; when each token arrived and how old its frame was when it was made."""
    video = {"type": "video_url", "video_url": {"url": f"camera://{camera}"}}
    body = {
        "model": "streamchat-tiny",
        "stream": True,
        "max_tokens": max_tokens,
        "messages": [{"role": "user", "content": [video, {"type": "text", "text": QUESTION}]}],
        "streamchat": options,
    }
    answer = TimedAnswer(time.time())
    async with http.stream("POST", "/v1/chat/completions", json=body) as reply:
        if reply.status_code != 200:
            raise RuntimeError(f"{reply.status_code}: {(await reply.aread()).decode()}")
        async for line in reply.aiter_lines():
            if not line.startswith("data: {"):
                continue
            for token in json.loads(line.removeprefix("data: ")).get("streamchat", {}).get("tokens", []):
                answer.arrived_s.append(time.time())
                answer.ages_ms.append(token["frame_age_ms"])
    return answer


def process_tree(parent: psutil.Process) -> list[psutil.Process]:
    """A process and all below it."""
    return [parent, *parent.children(recursive=True)]


def wait_ready(up: subprocess.Popen[str]) -> str:
    """Wait for the address that `streamchat up` prints when it is ready."""
    assert up.stdout is not None
    for line in up.stdout:
        if line.startswith("ready "):
            return line.split()[1]
    raise RuntimeError("streamchat up ended before it was ready")


def wait_live(url: str, cameras: Sequence[str]) -> None:
    """Wait until every camera is live and its FIFO is full."""
    deadline = time.monotonic() + 60
    states: dict[str, Any] = {}
    while time.monotonic() < deadline:
        states = {c["id"]: c for c in httpx.get(f"{url}/v1/cameras").json()["data"]}
        if all(states.get(c, {}).get("num_frames", 0) == states.get(c, {}).get("capacity") for c in cameras):
            return
        time.sleep(0.2)
    raise TimeoutError(f"not all cameras were live: {sorted(states)}")


@dataclass(frozen=True, slots=True)
class LiveService:
    """A running `streamchat up` and its servers."""

    process: psutil.Process
    url: str
    kafka: str
    redis: str


@contextlib.contextmanager
def live_service() -> Generator[LiveService]:
    """A broker, a store and `streamchat up`, ended with the block."""
    with contextlib.ExitStack() as stack:
        broker, store = start_broker(), start_store()
        stack.callback(broker.stop)
        stack.callback(store.stop)
        environment = {
            "STREAMCHAT_KAFKA_BOOTSTRAP_SERVERS": broker.bootstrap_servers,
            "STREAMCHAT_REDIS_URL": store.url,
        }
        starting = running_process(
            [*COMMAND, "up", "--port", "0"], environment, cwd=PROJECT_ROOT, stdout=subprocess.PIPE
        )
        up = stack.enter_context(starting)
        yield LiveService(psutil.Process(up.pid), wait_ready(up), broker.bootstrap_servers, store.url)
