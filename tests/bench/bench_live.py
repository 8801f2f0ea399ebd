"""Four live cameras and four dialogs on this machine: how old is the frame behind a word?

    python tests/bench/bench_live.py [--seconds 30] [--rounds 15]

Starts a broker, a store and `streamchat up`, publishes four live-world clips as cameras in real time, and asks.
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
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import psutil

sys.path.insert(0, str(Path(__file__).parent.parent.parent))
from model.config import PROJECT_ROOT
from services.messages.percentile import percentile
from tests.bench.measure.live_service import (
    COMMAND,
    FrameCounter,
    TimedAnswer,
    ask,
    live_service,
    process_tree,
    running_process,
    wait_live,
)

RESULTS = Path(__file__).parent / "results"

NUM_CAMERAS = 4


def processes(parent: psutil.Process) -> dict[str, dict[str, float]]:
    """CPU seconds and memory (PSS) so far of every process under one, by what it is."""
    found: dict[str, dict[str, float]] = {}
    for process in process_tree(parent):
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
    """Paced answers for the frame ages; then full speed, live and frozen in turn, for the cost of new frames."""
    async with httpx.AsyncClient(base_url=url, timeout=120) as http:
        await asyncio.gather(*(ask(http, c, 20) for c in cameras))  # rings and connections get warm
        begin_s = time.time()
        paced: list[TimedAnswer] = []
        while time.time() < begin_s + seconds:
            paced += await asyncio.gather(*(ask(http, c, 50, tokens_per_second=5.0) for c in cameras))
        end_s = time.time()
        speeds: dict[str, list[float]] = {"live": [], "frozen": []}
        flat: list[TimedAnswer] = []
        for number in range(rounds * 2):
            context = ("live", "frozen")[(number + number // 2) % 2]  # live frozen frozen live ...
            started_s = time.time()
            answers = await asyncio.gather(*(ask(http, c, 400, visual_context=context) for c in cameras))
            speeds[context].append(sum(len(h.ages_ms) for h in answers) / (time.time() - started_s))
            flat += answers if context == "live" else []
    ages = [age for h in paced for age in h.ages_ms]
    gaps = [1000 * (b - a) for h in paced for a, b in pairwise(h.arrived_s)]
    first = [1000 * (h.arrived_s[0] - h.asked_s) for h in paced]
    flat_ages = [age for h in flat for age in h.ages_ms]
    ratios = [a / b for a, b in zip(speeds["live"], speeds["frozen"], strict=True)]
    return {
        "begin_s": begin_s,
        "end_s": end_s,
        "tokens": len(ages),
        "frame_age_p50_ms": round(percentile(ages, 0.5), 1),
        "frame_age_p95_ms": round(percentile(ages, 0.95), 1),
        "time_to_first_token_p50_ms": round(percentile(first, 0.5), 1),
        "time_to_first_token_p95_ms": round(percentile(first, 0.95), 1),
        "between_tokens_p50_ms": round(percentile(gaps, 0.5), 1),
        "between_tokens_p95_ms": round(percentile(gaps, 0.95), 1),
        "flat_out_live_tokens_per_s": round(statistics.median(speeds["live"]), 1),
        "flat_out_frozen_tokens_per_s": round(statistics.median(speeds["frozen"]), 1),
        "live_over_frozen": round(statistics.median(ratios), 3),
        "flat_out_frame_age_p95_ms": round(percentile(flat_ages, 0.95), 1),
    }


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
        up = stack.enter_context(live_service())
        for number, camera in enumerate(cameras):
            publish = [*COMMAND, "publish", str(folder / f"{number:04d}.mp4"), "--camera", camera]
            publish += ["--loop", "--kafka", up.kafka]
            stack.enter_context(running_process(publish, cwd=PROJECT_ROOT, stderr=subprocess.DEVNULL))
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
        (RESULTS / "bench_live.json").write_text(json.dumps(kept, indent=1) + "\n")
    show(result)
    print(json.dumps({k: v for k, v in kept.items() if k != "processes"}))


if __name__ == "__main__":
    main()
