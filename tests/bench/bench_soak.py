"""A full house for an hour: eight cameras, eight dialogs, and if wanted a fuzzer that throws all it has at them.

    python tests/bench/bench_soak.py [--minutes 60] [--fuzz] [--seed 0]

Starts `streamchat up` with its own broker and store, publishes eight cameras, and asks about each at a human pace.
Notes the gaps between words, every process that ends or begins, and the memory of each. Prints a line a minute and
tables, keeps the result and a plot in tests/bench/results/ (bench_soak.json, or bench_soak_fuzz.json), and ends with
one JSON line.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any

import psutil
import torch

sys.path.insert(0, str(Path(__file__).parent.parent.parent))
from model.config import PROJECT_ROOT
from tests.bench.bench_cameras import write_scene
from tests.bench.measure.live_service import COMMAND, LiveService, running_process, wait_live, wait_ready
from tests.bench.measure.report import Plot, make_parser, print_table, save_result
from tests.bench.soak.bystanders import Heard, listen
from tests.bench.soak.processes import ProcessWatch

NUM_CAMERAS = 8
SOURCE_FPS = 10
SETTLED_S = 600.0  # from when on the memory shall stay; a sixth of a shorter run
ADDRESS = re.compile(r"(?:broker|store) at (127\.0\.0\.1:\d+)")
RESTARTS = re.compile(r"starting it again|ended:|made anew|died|restarting|unhealthy", re.IGNORECASE)


@contextlib.contextmanager
def embedded_stack(log: Path) -> Generator[LiveService]:
    """`streamchat up` with its own servers; what it prints on standard error goes to `log`."""
    command = [*COMMAND, "up", "--port", "0"]
    with (
        log.open("w") as messages,
        running_process(command, cwd=PROJECT_ROOT, stdout=subprocess.PIPE, stderr=messages) as up,
    ):
        url = wait_ready(up)
        broker, store = (found[1] for found in ADDRESS.finditer(log.read_text()))
        yield LiveService(psutil.Process(up.pid), url, broker, f"redis://{store}/0")


@contextlib.contextmanager
def fuzzing(up: LiveService, options: argparse.Namespace) -> Generator[dict[str, Any]]:
    """A fuzzer beside the block, if wanted; after the block the dict has what it sent and found."""
    result: dict[str, Any] = {}
    if not options.fuzz:
        yield result
        return
    script = Path(__file__).parent / "soak" / "fuzz.py"
    command = [sys.executable, str(script), up.url, up.kafka, "--seed", str(options.seed)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=PROJECT_ROOT) as fuzzer:
        try:
            yield result
        finally:
            fuzzer.send_signal(signal.SIGTERM)
            printed, _ = fuzzer.communicate(timeout=120)
            if printed:
                result |= json.loads(printed.splitlines()[-1])
            else:
                result["problem"] = f"the fuzzer ended with status {fuzzer.returncode}"


def soak(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Start everything, listen for the time, stop everything."""
    cameras = [f"soak-{i}" for i in range(NUM_CAMERAS)]
    scene = write_scene(folder, SOURCE_FPS, (640, 360))
    log = folder / "up.txt"
    with contextlib.ExitStack() as stack:
        up = stack.enter_context(embedded_stack(log))
        publish = [
            sys.executable,
            str(Path(__file__).parent / "bench_cameras.py"),
            "--publish",
            str(scene),
            up.kafka,
        ]
        stack.enter_context(
            running_process([*publish, *cameras], cwd=PROJECT_ROOT, stderr=subprocess.DEVNULL)
        )
        wait_live(up.url, cameras)
        watch, heard = ProcessWatch(up.process), Heard()
        stack.callback(watch.stop)
        end_s = time.time() + options.minutes * 60
        progress = threading.Thread(target=print_progress, args=(end_s, heard), daemon=True)
        progress.start()
        with fuzzing(up, options) as fuzzed:
            asyncio.run(listen(up.url, cameras, end_s, heard))
        watch.stop()
        result = {
            "minutes": options.minutes,
            "cameras": NUM_CAMERAS,
            "dialogs": NUM_CAMERAS,
            **heard.summary(),
        }
        rows = watch.summary(min(SETTLED_S, options.minutes * 10))
    told = [line for line in log.read_text().splitlines() if RESTARTS.search(line)]
    print_table([{"": name, "value": value} for name, value in result.items()])
    print_table(rows)
    kept = {
        "long_gaps": heard.long_gaps[:50],
        "error_texts": heard.errors[:20],
        "told": told[:50],
        "processes": rows,
    }
    return {**result, **kept, **({"fuzz": fuzzed} if fuzzed else {}), "memory": series(watch)}


def series(watch: ProcessWatch) -> dict[str, list[list[float]]]:
    """Memory over time of the processes that lived at least half of the time: minutes, MiB."""
    most = max(len(samples) for samples in watch.samples.values())
    return {
        f"{name} {pid}": [[round(at / 60, 1), round(mb)] for at, mb in samples[:: max(1, most // 60)]]
        for (name, pid), samples in watch.samples.items()
        if len(samples) > most / 2
    }


def print_progress(end_s: float, heard: Heard) -> None:
    """A line a minute, on standard error."""
    while (left_s := end_s - time.time()) > 0:
        time.sleep(min(60.0, left_s))
        longest = max(heard.gaps_s, default=0.0)
        print(
            f"{left_s / 60:5.1f} min left: {len(heard.gaps_s)} gaps, the longest {longest:.2f} s, "
            f"{len(heard.long_gaps)} above 0.5 s, {len(heard.errors)} errors",
            file=sys.stderr,
            flush=True,
        )


def make_plot(result: dict[str, Any]) -> Plot:
    """Memory of the largest processes over time."""
    plot = Plot("Memory during the soak", 1)
    largest = sorted(result["memory"].items(), key=lambda item: -max(mb for _, mb in item[1]))[:8]
    for name, points in largest:
        plot.line(0, [at for at, _ in points], [mb for _, mb in points], name)
    plot.label(0, "minutes", "MiB (PSS)", log_y=True)
    return plot


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line, run, keep, print."""
    parser = make_parser(__doc__)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument(
        "--fuzz", action="store_true", help="throw random requests, events, records and files at it"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the fuzzer")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        result = soak(options, Path(folder))
    name = "soak_fuzz" if options.fuzz else "soak"
    save_result(name, result, make_plot(result), options, torch.device("cpu"))


if __name__ == "__main__":
    main()
