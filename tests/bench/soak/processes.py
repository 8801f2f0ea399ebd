"""The processes of a running stack: which there are, and their memory over time."""

from __future__ import annotations

import contextlib
import statistics
import threading
import time
from collections import defaultdict
from itertools import pairwise
from typing import Any

import psutil

from tests.bench.measure.live_service import process_tree

EVERY_S = 15.0
LAST_S = 120.0  # the end of the run, over which the memory is averaged


def title_of(process: psutil.Process) -> str:
    """What it is: a Ray actor's class, or the program's name."""
    words = process.cmdline()
    title = " ".join(words)
    if title.startswith("ray::"):
        return title.removeprefix("ray::").split()[0].split(".")[0][:48]
    modules = [after for before, after in pairwise(words) if before == "-m"]
    scripts = [word.rpartition("/")[2] for word in words[:3] if word.endswith(".py")]
    return (modules + scripts + [process.name()])[0][:48]


class ProcessWatch:
    """Samples the memory (PSS) of every process below one, in a thread, until `stop`."""

    def __init__(self, parent: psutil.Process) -> None:
        self._parent = parent
        self.began_s = time.monotonic()
        self.samples: dict[tuple[str, int], list[tuple[float, float]]] = defaultdict(list)  # seconds, MiB
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._ended.is_set():
            for process in process_tree(self._parent):
                with contextlib.suppress(psutil.Error, IndexError):
                    key = title_of(process), process.pid
                    mb = process.memory_full_info().pss / 2**20
                    self.samples[key].append((time.monotonic() - self.began_s, mb))
            self._ended.wait(EVERY_S)

    def stop(self) -> None:
        """End the thread."""
        self._ended.set()
        self._thread.join()

    def summary(self, settled_s: float) -> list[dict[str, Any]]:
        """A row a process that was there at `settled_s` or at the end: its memory at both, and the highest between."""
        end_s = time.monotonic() - self.began_s
        last_s = min(LAST_S, (end_s - settled_s) / 2)
        rows: list[dict[str, Any]] = []
        for (name, pid), samples in sorted(self.samples.items()):
            then = [mb for at, mb in samples if settled_s <= at <= settled_s + last_s]
            now = [mb for at, mb in samples if at >= end_s - last_s]
            if not then and not now:
                continue
            first, last = (statistics.median(each) if each else 0.0 for each in (then, now))
            rows.append({
                "process": name, "pid": pid, "MiB settled": round(first, 1), "MiB at the end": round(last, 1),
                "growth %": round(100 * (last / first - 1), 1) if first else None,
                "highest MiB": round(max(mb for _, mb in samples), 1),
                "lived": "all the time" if then and now else "ended" if then else "began",
            })  # fmt: skip
        return rows
