"""The machine that a benchmark runs on: hardware, load, and measured limits."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import torch

_clock: Callable[[], float] = time.perf_counter


def device_of(name: str) -> torch.device:
    """`auto` is the GPU when there is one."""
    return torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)


def synchronize(device: torch.device) -> None:
    """Wait until the device has finished its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def describe(device: torch.device) -> dict[str, Any]:
    """Date, hardware and load, as kept with every result."""
    memory = round(psutil.virtual_memory().total / 2**30)
    hardware = f"{_processor()}, {os.cpu_count()} cores, {memory} GiB"
    if device.type == "cuda":
        hardware = f"{torch.cuda.get_device_name(device)}; {hardware}"
    return {
        "date": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "hardware": hardware,
        "device": str(device),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "load_of_others": load_of_others(),
    }


def load_of_others(over_s: float = 1.0) -> float:
    """Processor cores that are busy now. A reader must know it before trusting a time."""
    return round(psutil.cpu_percent(over_s) / 100 * (os.cpu_count() or 1), 2)


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def choose_clock(name: str) -> None:
    """Set the clock of `now`: `wall`, or `cpu`, this thread's own time.

    `cpu` is for machines with other load. It does not count other threads, so it is right only with one CPU thread.
    """
    global _clock
    _clock = {"wall": time.perf_counter, "cpu": time.thread_time}[name]


def now() -> float:
    """Seconds on the chosen clock."""
    return _clock()


def seconds(call: Callable[[], object], device: torch.device) -> float:
    """Time of one call, including its work on the device."""
    synchronize(device)
    start = now()
    call()
    synchronize(device)
    return now() - start


def median_s(call: Callable[[], object], device: torch.device, rounds: int) -> float:
    """Median time of a call, after one call that is not counted."""
    call()
    return statistics.median(seconds(call, device) for _ in range(rounds))


def bandwidth(device: torch.device, num_bytes: int, rounds: int = 7) -> float:
    """Bytes per second when weights of this size are read once per token: a matrix times a vector."""
    rows = max(num_bytes // (4 * 4096), 1)
    matrix = torch.ones(rows, 4096, device=device)
    vector = torch.ones(4096, device=device)
    return matrix.numel() * 4 / median_s(lambda: matrix @ vector, device, rounds)


def arithmetic(device: torch.device, dtype: torch.dtype, size: int = 0, rounds: int = 5) -> float:
    """Operations per second of a large matrix product."""
    size = size or (8192 if device.type == "cuda" else 1536)
    matrix = torch.ones(size, size, device=device, dtype=dtype)
    return 2 * size**3 / median_s(lambda: matrix @ matrix, device, rounds)


def limits(device: torch.device, dtype: torch.dtype, num_bytes: int) -> dict[str, float]:
    """The limits of a step: bandwidth for its number of bytes, bandwidth of memory, arithmetic."""
    large = 8 * 2**30 if device.type == "cuda" else 2**30
    return {
        "bandwidth_at_step_gb_s": round(bandwidth(device, max(num_bytes, 2**20)) / 1e9, 1),
        "bandwidth_memory_gb_s": round(bandwidth(device, large) / 1e9, 1),
        "arithmetic_gflop_s": round(arithmetic(device, dtype) / 1e9, 1),
    }
