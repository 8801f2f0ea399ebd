"""How many cameras this machine carries: frames that come, frames that are lost, and what those who talk notice.

    python tests/bench/bench_cameras.py [--cameras 8,16,32,48,64] [--fps 1] [--seconds 20]

Real H.264 through a broker, a store and `streamchat up`, with more cameras from row to row and four dialogs all the
while. Prints a table, keeps the result and a plot in tests/bench/results/, and ends with one JSON line.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
import psutil
import torch

sys.path.insert(0, str(Path(__file__).parent.parent.parent))
from services.kafka_video_log import KafkaVideoLog
from services.publish import play
from tests.bench.bench_live import (
    ROOT,
    FrameCounter,
    Heard,
    Served,
    ask,
    family,
    running,
    served,
    share,
    wait_live,
)
from tests.bench.report import Plot, keep, numbers, parser, table
from tests.services.h264 import clip_file

NUM_DIALOGS = 4
WORDS_S = 5.0


def publish(source: str, kafka: str, cameras: Sequence[str]) -> None:
    """Be so many cameras, until ended: one thread each, at real pace, not all at the same moment."""
    video_log = KafkaVideoLog(kafka, "cameras")
    for camera in cameras:
        threading.Thread(target=play, args=(source, camera, video_log), kwargs={"loop": True}).start()
        time.sleep(0.11)


async def talk(url: str, cameras: Sequence[str], seconds: float) -> list[Heard]:
    """Four people who ask again and again; RuntimeError when one is not answered."""
    heard: list[Heard] = []
    async with httpx.AsyncClient(base_url=url, timeout=120) as http:
        end_s = time.time() + seconds
        while time.time() < end_s:
            heard += await asyncio.gather(*(ask(http, c, 50, tokens_per_second=WORDS_S) for c in cameras))
    return heard


def cpu_s(up: Served) -> dict[str, float]:
    """CPU seconds so far: of each deployment, and of all else."""
    used: dict[str, float] = {}
    for process in family(up.process):
        with contextlib.suppress(psutil.Error):
            title = " ".join(process.cmdline())
            known = ("FrameFifo", "VisionEncoder", "LLMDecoder", "Gateway")
            name = next((each for each in known if each in title), "others")
            times = process.cpu_times()
            used[name] = used.get(name, 0.0) + times.user + times.system
    return used


def level(up: Served, cameras: Sequence[str], fps: float, seconds: float) -> dict[str, Any]:
    """One row: so many cameras that are live already."""
    counter = FrameCounter(up.redis, cameras, fps)
    try:
        before, began_s = cpu_s(up), time.time()
        psutil.cpu_percent()  # from here on
        heard = asyncio.run(talk(up.url, cameras[:NUM_DIALOGS], seconds))
        machine = psutil.cpu_percent() / 100 * len(psutil.Process().cpu_affinity())
        ended_s, after = time.time(), cpu_s(up)
        came, lost = counter.missing(began_s, ended_s)
    finally:
        counter.stop()
    took_s = ended_s - began_s
    ages = [age for each in heard for age in each.ages_ms]
    first = [1000 * (each.arrived_s[0] - each.asked_s) for each in heard]
    return {
        "cameras": len(cameras),
        "frames/s": round(came / took_s, 1),
        "lost": lost,
        "age p50 ms": round(share(ages, 0.5)),
        "age p95 ms": round(share(ages, 0.95)),
        "first word p95 ms": round(share(first, 0.95)),
        "words/s": round(len(ages) / took_s, 1),
        "stack cores": round((sum(after.values()) - sum(before.values())) / took_s, 2),
        "machine cores": round(machine, 2),  # broker, store and the cameras themselves as well
        **{f"{name} cores": round((after[name] - before.get(name, 0)) / took_s, 2) for name in sorted(after)},
        "MB": round(sum(p.memory_full_info().pss for p in family(up.process)) / 2**20),
    }


def main() -> None:
    """Read the command line, run, keep, print."""
    options = parser(__doc__)
    options.add_argument("--cameras", type=numbers, default=[8, 16, 32, 48, 64], help="so many, row by row")
    options.add_argument("--fps", type=int, default=1, help="pictures a second of each camera (1)")
    options.add_argument("--size", type=numbers, default=[640, 360], help="of a picture, in pixels (640,360)")
    options.add_argument("--seconds", type=float, default=20.0, help="of each row (20)")
    options.add_argument("--publish", nargs="+", help=argparse.SUPPRESS)
    given = options.parse_args()
    if given.publish:
        source, kafka, *names = given.publish
        publish(source, kafka, names)
        return
    rows: list[dict[str, Any]] = []
    plot = Plot(f"{given.fps} FPS cameras on this machine", 2)
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        clip = clip_file(
            folder, num_frames=60 * given.fps, fps=given.fps, gop=5, size=(given.size[0], given.size[1])
        )
        up = stack.enter_context(served())
        cameras: list[str] = []
        for num in given.cameras:
            new = [f"camera-{number:03d}" for number in range(len(cameras), num)]
            words = [sys.executable, __file__, "--publish", str(clip), up.kafka, *new]
            stack.enter_context(running(words, cwd=ROOT, stderr=subprocess.DEVNULL))
            cameras += new
            wait_live(up.url, cameras)
            rows.append(level(up, cameras, given.fps, given.seconds))
            print(rows[-1], flush=True)
    table(rows)
    nums = [row["cameras"] for row in rows]
    for name in ("age p50 ms", "age p95 ms"):
        plot.line(0, nums, [row[name] for row in rows], name)
    plot.line(1, nums, [row["stack cores"] for row in rows], "cores of the stack")
    plot.line(1, nums, [row["lost"] for row in rows], "frames lost")
    plot.label(0, "cameras", "frame age at decode, ms")
    plot.label(1, "cameras", "cores, frames")
    keep("cameras", {"fps": given.fps, "size": given.size, "rows": rows}, plot, given, torch.device("cpu"))


if __name__ == "__main__":
    main()
