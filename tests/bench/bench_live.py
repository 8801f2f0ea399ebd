"""Four live cameras, four dialogs at once, on this machine: how old is the frame behind a word?

    python tests/bench/bench_live.py [--seconds 30] [--rounds 15]

Starts a broker, a store and `streamchat up`, publishes four live-world clips as cameras at real pace, and asks.
Prints a table, keeps the result in tests/bench/results/, and ends with one JSON line.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import psutil

sys.path.insert(0, str(Path(__file__).parent.parent.parent))
from model.config import PROJECT_ROOT
from services.adapters.redis_frame_store import RedisFrameStore
from services.local.embedded_servers import start_broker, start_store
from services.ports.frame_store import BEFORE_ALL

COMMAND = (sys.executable, "-m", "services.cli.main")
NUM_CAMERAS = 4
FPS = 5.0
QUESTION = "Tell me what happens from now on."


@dataclass(slots=True)
class Heard:
    """One answer as it arrived."""

    asked_s: float
    arrived_s: list[float] = field(default_factory=list[float])
    ages_ms: list[float] = field(default_factory=list[float])


@contextlib.contextmanager
def running(
    command: Sequence[str], environment: dict[str, str] | None = None, **options: Any
) -> Generator[subprocess.Popen[str]]:
    """A process that is ended with the block."""
    process = subprocess.Popen(command, env={**os.environ, **(environment or {})}, text=True, **options)
    try:
        yield process
    finally:
        process.terminate()
        process.wait(timeout=60)


class FrameCounter:
    """Follows the cameras' FIFOs and counts frames that should be there and are not."""

    def __init__(self, url: str, cameras: Sequence[str], fps: float = FPS) -> None:
        self._store, self._fps = RedisFrameStore(url), fps
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


async def ask(http: httpx.AsyncClient, camera: str, max_tokens: int, **options: Any) -> Heard:
    """One question; when each token arrived and how old its frame was when it was made."""
    video = {"type": "video_url", "video_url": {"url": f"camera://{camera}"}}
    body = {
        "model": "streamchat-tiny",
        "stream": True,
        "max_tokens": max_tokens,
        "messages": [{"role": "user", "content": [video, {"type": "text", "text": QUESTION}]}],
        "streamchat": options,
    }
    heard = Heard(time.time())
    async with http.stream("POST", "/v1/chat/completions", json=body) as reply:
        if reply.status_code != 200:
            raise RuntimeError(f"{reply.status_code}: {(await reply.aread()).decode()}")
        async for line in reply.aiter_lines():
            if not line.startswith("data: {"):
                continue
            for token in json.loads(line.removeprefix("data: ")).get("streamchat", {}).get("tokens", []):
                heard.arrived_s.append(time.time())
                heard.ages_ms.append(token["frame_age_ms"])
    return heard


def share(values: Sequence[float], part: float) -> float:
    """A percentile."""
    return sorted(values)[min(int(len(values) * part), len(values) - 1)]


def family(parent: psutil.Process) -> list[psutil.Process]:
    """A process and all below it."""
    return [parent, *parent.children(recursive=True)]


def processes(parent: psutil.Process) -> dict[str, dict[str, float]]:
    """CPU seconds and memory (PSS) so far of every process under one, by what it is."""
    found: dict[str, dict[str, float]] = {}
    for process in family(parent):
        with contextlib.suppress(psutil.Error):
            title = " ".join(process.cmdline()) or process.name()
            name = title.split()[0].split("/")[-1][:40] if "ray::" not in title else title[:60]
            times = process.cpu_times()
            row = found.setdefault(name, {"cpu_s": 0.0, "pss_mb": 0.0, "processes": 0})
            row["cpu_s"] += times.user + times.system
            row["pss_mb"] += process.memory_full_info().pss / 2**20
            row["processes"] += 1
    return found


async def measure(url: str, cameras: Sequence[str], seconds: float, rounds: int) -> dict[str, Any]:
    """Paced answers for the ages; then flat out, live and frozen in turn, for the price of looking again."""
    async with httpx.AsyncClient(base_url=url, timeout=120) as http:
        await asyncio.gather(*(ask(http, c, 20) for c in cameras))  # rings and connections get warm
        begin_s = time.time()
        paced: list[Heard] = []
        while time.time() < begin_s + seconds:
            paced += await asyncio.gather(*(ask(http, c, 50, tokens_per_second=5.0) for c in cameras))
        end_s = time.time()
        speeds: dict[str, list[float]] = {"live": [], "frozen": []}
        flat: list[Heard] = []
        for number in range(rounds * 2):
            context = ("live", "frozen")[(number + number // 2) % 2]  # live frozen frozen live ...
            started_s = time.time()
            heard = await asyncio.gather(*(ask(http, c, 400, visual_context=context) for c in cameras))
            speeds[context].append(sum(len(h.ages_ms) for h in heard) / (time.time() - started_s))
            flat += heard if context == "live" else []
    ages = [age for h in paced for age in h.ages_ms]
    gaps = [1000 * (b - a) for h in paced for a, b in pairwise(h.arrived_s)]
    first = [1000 * (h.arrived_s[0] - h.asked_s) for h in paced]
    flat_ages = [age for h in flat for age in h.ages_ms]
    ratios = [a / b for a, b in zip(speeds["live"], speeds["frozen"], strict=True)]
    return {
        "begin_s": begin_s,
        "end_s": end_s,
        "tokens": len(ages),
        "frame_age_p50_ms": round(share(ages, 0.5), 1),
        "frame_age_p95_ms": round(share(ages, 0.95), 1),
        "time_to_first_token_p50_ms": round(share(first, 0.5), 1),
        "time_to_first_token_p95_ms": round(share(first, 0.95), 1),
        "between_tokens_p50_ms": round(share(gaps, 0.5), 1),
        "between_tokens_p95_ms": round(share(gaps, 0.95), 1),
        "flat_out_live_tokens_per_s": round(statistics.median(speeds["live"]), 1),
        "flat_out_frozen_tokens_per_s": round(statistics.median(speeds["frozen"]), 1),
        "live_over_frozen": round(statistics.median(ratios), 3),
        "flat_out_frame_age_p95_ms": round(share(flat_ages, 0.95), 1),
    }


def wait_ready(up: subprocess.Popen[str]) -> str:
    """The address that `streamchat up` says when it is ready."""
    assert up.stdout is not None
    for line in up.stdout:
        if line.startswith("ready "):
            return line.split()[1]
    raise RuntimeError("streamchat up ended before it was ready")


def wait_live(url: str, cameras: Sequence[str]) -> None:
    """Until every camera is live and its FIFO is full."""
    deadline = time.monotonic() + 60
    states: dict[str, Any] = {}
    while time.monotonic() < deadline:
        states = {c["id"]: c for c in httpx.get(f"{url}/v1/cameras").json()["data"]}
        if all(states.get(c, {}).get("num_frames", 0) == states.get(c, {}).get("capacity") for c in cameras):
            return
        time.sleep(0.2)
    raise TimeoutError(f"not all cameras were live: {sorted(states)}")


@dataclass(frozen=True, slots=True)
class Served:
    """A running `streamchat up` and what it stands on."""

    process: psutil.Process
    url: str
    kafka: str
    redis: str


@contextlib.contextmanager
def served() -> Generator[Served]:
    """A broker, a store and `streamchat up`, ended with the block."""
    with contextlib.ExitStack() as stack:
        broker, store = start_broker(), start_store()
        stack.callback(broker.stop)
        stack.callback(store.stop)
        environment = {
            "STREAMCHAT_KAFKA_BOOTSTRAP_SERVERS": broker.bootstrap_servers,
            "STREAMCHAT_REDIS_URL": store.url,
        }
        starting = running(
            [*COMMAND, "up", "--port", "0"], environment, cwd=PROJECT_ROOT, stdout=subprocess.PIPE
        )
        up = stack.enter_context(starting)
        yield Served(psutil.Process(up.pid), wait_ready(up), broker.bootstrap_servers, store.url)


def run(seconds: float, rounds: int) -> dict[str, Any]:
    """Start everything, measure, stop everything."""
    cameras = [f"bench-{i}" for i in range(NUM_CAMERAS)]
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        make = [
            sys.executable,
            "training/live_world/write_clips.py",
            "--seed",
            "77",
            "--num",
            str(NUM_CAMERAS),
        ]
        subprocess.run([*make, "--out", folder], cwd=PROJECT_ROOT, check=True, stderr=subprocess.DEVNULL)
        up = stack.enter_context(served())
        for number, camera in enumerate(cameras):
            publish = [*COMMAND, "publish", str(folder / f"{number:04d}.mp4"), "--camera", camera]
            publish += ["--loop", "--kafka", up.kafka]
            stack.enter_context(running(publish, cwd=PROJECT_ROOT, stderr=subprocess.DEVNULL))
        wait_live(up.url, cameras)
        counter = FrameCounter(up.redis, cameras)
        stack.callback(counter.stop)
        before = processes(up.process)
        result = asyncio.run(measure(up.url, cameras, seconds, rounds))
        after = processes(up.process)
        came, lost = counter.missing(result.pop("begin_s"), result.pop("end_s"))
        result |= {"frames": came, "frames_dropped": lost}
        result["processes"] = {
            name: {
                "cpu_s": round(row["cpu_s"] - before.get(name, {"cpu_s": 0})["cpu_s"], 1),
                "pss_mb": round(row["pss_mb"]),
                "processes": int(row["processes"]),
            }
            for name, row in sorted(after.items(), key=lambda item: -item[1]["cpu_s"])
        }
        return result


def show(result: dict[str, Any]) -> None:
    """The table for people."""
    for name, value in result.items():
        if name != "processes":
            print(f"{name:34} {value}")
    print(f"\n{'process':62} {'n':>2} {'cpu s':>8} {'PSS MB':>8}")
    for name, row in result["processes"].items():
        print(f"{name:62} {row['processes']:>2} {row['cpu_s']:>8} {row['pss_mb']:>8}")


def main() -> None:
    """Read the command line, run, keep, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--quick", action="store_true", help="ten seconds and one round; nothing is kept")
    options = parser.parse_args()
    result = run(10.0, 1) if options.quick else run(options.seconds, options.rounds)
    kept = {
        "bench": "live",
        "date": time.strftime("%Y-%m-%d"),
        "hardware": f"{os.cpu_count()} cores, {platform.machine()}, {round(psutil.virtual_memory().total / 2**30)} GiB",
        "cameras": NUM_CAMERAS,
        "dialogs": NUM_CAMERAS,
        **result,
    }
    if not options.quick:
        (Path(__file__).parent / "results" / "bench_live.json").write_text(json.dumps(kept, indent=1) + "\n")
    show(result)
    print(json.dumps({k: v for k, v in kept.items() if k != "processes"}))


if __name__ == "__main__":
    main()
