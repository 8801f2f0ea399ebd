"""How many cameras this machine can serve: frames that arrive, frames that are lost, and the effect on answers.

    python tests/bench/bench_cameras.py [--cameras 16,32,48,64,80,96] [--fps 1] [--seconds 20]

Real H.264 through a broker, a store and `streamchat up`, with more cameras from row to row and four dialogs all the
while. Prints a table, keeps the result and a plot in tests/bench/results/, and ends with one JSON line.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import av
import httpx
import numpy as np
import psutil
import torch
from PIL import Image
from redis import Redis

sys.path.insert(0, str(Path(__file__).parent.parent.parent))
from model.config import PROJECT_ROOT
from services.adapters.kafka_writer import KafkaVideoWriter
from services.messages.percentile import percentile
from services.publisher.publish import send_source
from tests.bench.measure.live_service import (
    FrameCounter,
    LiveService,
    TimedAnswer,
    ask,
    live_service,
    process_tree,
    running_process,
    wait_live,
)
from tests.bench.measure.report import Plot, int_list, make_parser, print_table, save_result

NUM_DIALOGS = 4
WORDS_S = 5.0
KEYFRAME_S = 2  # between two of a camera: what `streamchat publish` passes on as it is
PARTS = ("FrameFifo", "VisionEncoder", "LLMDecoder", "Gateway", "broker", "valkey", "--publish")
DROPPED = re.compile(r'streamchat_(frames_dropped|packets_skipped)_total\{.*reason="(\w+)".*\} (\S+)')


def write_scene(folder: Path, fps: int, size: tuple[int, int]) -> Path:
    """Write a minute of a fixed camera's video: a still scene with sensor noise, and one moving thing."""
    path, random = folder / "scene.mp4", np.random.default_rng(0)

    def texture(part: int, contrast: float) -> Any:
        small = random.integers(0, 256, (size[1] // part, size[0] // part, 3), np.uint8)
        return (np.asarray(Image.fromarray(small).resize(size), np.float32) - 128) * contrast

    still = 128 + texture(40, 0.6) + texture(4, 0.1)
    with av.open(path, "w") as out:
        stream: Any = out.add_stream("libx264", rate=fps)
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        stream.codec_context.gop_size, stream.codec_context.max_b_frames = KEYFRAME_S * fps, 0
        stream.options = {"preset": "veryfast"}
        for number in range(60 * fps):
            picture = (still + random.normal(0, 2, still.shape)).clip(0, 255).astype(np.uint8)
            left = number * 16 % (size[0] // 2)
            picture[size[1] // 4 : size[1] // 2, left : left + size[0] // 6] = (220, 30, 30)
            out.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        out.mux(stream.encode(None))
    return path


def publish(source: str, kafka: str, cameras: Sequence[str]) -> None:
    """Publish as these cameras until ended: one thread each, in real time, started one after the other."""
    video_log = KafkaVideoWriter(kafka, "cameras")
    for camera in cameras:
        threading.Thread(target=send_source, args=(source, camera, video_log), kwargs={"loop": True}).start()
        time.sleep(0.11)


async def ask_repeatedly(url: str, cameras: Sequence[str], seconds: float) -> list[TimedAnswer]:
    """Ask about these cameras again and again; RuntimeError when a question is not answered."""
    answers: list[TimedAnswer] = []
    async with httpx.AsyncClient(base_url=url, timeout=120) as http:
        end_s = time.time() + seconds
        while time.time() < end_s:
            answers += await asyncio.gather(*(ask(http, c, 50, tokens_per_second=WORDS_S) for c in cameras))
    return answers


def cpu_s() -> dict[str, float]:
    """CPU seconds so far of all that this benchmark started, by what it is."""
    used: dict[str, float] = {}
    for process in process_tree(psutil.Process())[1:]:
        with contextlib.suppress(psutil.Error):
            title = " ".join(process.cmdline())
            name = next((each for each in PARTS if each in title), "others").removeprefix("--")
            times = process.cpu_times()
            used[name] = used.get(name, 0.0) + times.user + times.system
    return used


def dropped_by_reason(url: str) -> dict[str, float]:
    """Frames and packets dropped so far, by reason, as the stack counts them."""
    found: dict[str, float] = {}
    for line in httpx.get(f"{url}/metrics").text.splitlines():
        if match := DROPPED.match(line):
            name = match[2] + (" packets" if match[1] == "packets_skipped" else "")
            found[name] = found.get(name, 0.0) + float(match[3])
    return found


def difference(after: dict[str, float], before: dict[str, float]) -> dict[str, float]:
    """What was added to each count."""
    return {name: after[name] - before.get(name, 0.0) for name in sorted(after)}


def measure_cameras(up: LiveService, cameras: Sequence[str], fps: float, seconds: float) -> dict[str, Any]:
    """One row of the table: measure with these cameras, which are live already."""
    counter, store = FrameCounter(up.redis, cameras, fps), Redis.from_url(up.redis)
    try:
        used, dropped, began_s = cpu_s(), dropped_by_reason(up.url), time.time()
        written: Any = store.info("stats")
        psutil.cpu_percent()  # from here on
        answers = asyncio.run(ask_repeatedly(up.url, cameras[:NUM_DIALOGS], seconds))
        machine = psutil.cpu_percent() / 100 * (psutil.cpu_count() or 1)
        ended_s, used = time.time(), difference(cpu_s(), used)
        dropped = difference(dropped_by_reason(up.url), dropped)
        taken: Any = store.info("stats")
        came, lost = counter.missing(began_s, ended_s)
    finally:
        counter.stop()
    took_s = ended_s - began_s
    ages = [age for each in answers for age in each.ages_ms]
    first = [1000 * (each.arrived_s[0] - each.asked_s) for each in answers]
    stored_mb = (taken["total_net_input_bytes"] - written["total_net_input_bytes"]) / 1e6
    return {
        "cameras": len(cameras),
        "frames/s": round(came / took_s, 1),
        "lost": lost,
        "age p50 ms": round(percentile(ages, 0.5)),
        "age p95 ms": round(percentile(ages, 0.95)),
        "age max ms": round(max(ages)),
        "first word p95 ms": round(percentile(first, 0.95)),
        "words/s": round(len(ages) / took_s, 1),
        "machine cores": round(machine, 2),
        "cores": {name: round(seconds_ / took_s, 2) for name, seconds_ in used.items()},
        "dropped": {name: round(number) for name, number in dropped.items() if number},
        "Redis MB/s": round(stored_mb / took_s, 2),
        "MB": round(sum(p.memory_full_info().pss for p in process_tree(up.process)) / 2**20),
    }


def main() -> None:
    """Read the command line, run, keep, print."""
    options = make_parser(__doc__)
    options.add_argument(
        "--cameras", type=int_list, default=[16, 32, 48, 64, 80, 96], help="number of cameras of each row"
    )
    options.add_argument("--fps", type=int, default=1, help="pictures a second of each camera (1)")
    options.add_argument(
        "--size", type=int_list, default=[640, 360], help="of a picture, in pixels (640,360)"
    )
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
        clip = write_scene(folder, given.fps, (given.size[0], given.size[1]))
        up = stack.enter_context(live_service())
        cameras: list[str] = []
        for num in given.cameras:
            new = [f"camera-{number:03d}" for number in range(len(cameras), num)]
            words = [sys.executable, __file__, "--publish", str(clip), up.kafka, *new]
            stack.enter_context(running_process(words, cwd=PROJECT_ROOT, stderr=subprocess.DEVNULL))
            cameras += new
            try:
                wait_live(up.url, cameras)
            except TimeoutError:
                if not rows:
                    raise
                print(f"{num} cameras: not all are live at once, so no more are tried", flush=True)
                break
            rows.append(measure_cameras(up, cameras, given.fps, given.seconds))
            print(rows[-1], flush=True)
    print_table(rows)
    nums = [row["cameras"] for row in rows]
    for name in ("age p50 ms", "age p95 ms"):
        plot.line(0, nums, [row[name] for row in rows], name)
    plot.line(1, nums, [given.fps * num for num in nums], "sent")
    plot.line(1, nums, [row["frames/s"] for row in rows], "looked at")
    plot.label(0, "cameras", "frame age at decode, ms")
    plot.label(1, "cameras", "frames a second")
    save_result(
        "cameras", {"fps": given.fps, "size": given.size, "rows": rows}, plot, given, torch.device("cpu")
    )


if __name__ == "__main__":
    main()
