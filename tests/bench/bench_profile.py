"""The time of one step by kind of operation, and its lower bound from this machine's measured limits.

    python tests/bench/bench_profile.py [--shape tiny] [--dialogs 1,32] [--frames 32] [--quick]

`floor` is the time to read the weights, frames and text of a step from memory, or to do its multiplications, whichever
is longer. Prints tables, keeps result and plot in tests/bench/results/, and ends
with one JSON line.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

sys.path.insert(0, str(Path(__file__).parent.parent.parent))
from model.network.streamchat import StreamChat
from tests.bench.measure.loaded_engine import LoadedEngine
from tests.bench.measure.machine import limits, median_s, synchronize
from tests.bench.measure.report import (
    Plot,
    int_list,
    make_parser,
    print_table,
    result_name,
    save_result,
    setup,
)
from tests.bench.measure.shapes import SHAPES, decode_bytes, make_config, make_model

# The group of an operation, by a part of its name; the first match counts.
KINDS = {
    "attention": ("attention", "bmm", "softmax", "flash", "baddbmm"),
    "weights (matrix products)": ("mm", "linear", "gemm", "gemv", "mv", "dot"),
    "norms": ("norm", "mean", "rsqrt", "pow", "var"),
    "copies": (
        "copy",
        "_to_",
        "clone",
        "cat",
        "index",
        "contiguous",
        "fill",
        "zero",
        "stack",
        "Memcpy",
        "gather",
    ),
    "views": (
        "view",
        "transpose",
        "as_strided",
        "slice",
        "expand",
        "permute",
        "select",
        "flatten",
        "reshape",
        "split",
    ),
    "elementwise": ("mul", "add", "sub", "div", "silu", "cos", "sin", "neg", "where", "masked"),
}


def operation_group(name: str) -> str:
    """The group of an operation."""
    for group, parts in KINDS.items():
        if any(part in name for part in parts):
            return group
    return "other operations"


def time_by_group(loaded: LoadedEngine, steps: int, step_s: float) -> list[dict[str, Any]]:
    """The time of a step by group of operations; the rest is Python between them.

    The profiler slows the step down, so the times are scaled to those of a step without it.
    """
    cuda = loaded.engine.device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
    with profile(activities=activities, acc_events=True) as seen:
        start = time.perf_counter()  # the profiler knows no other clock
        for _ in range(steps):
            loaded.step()
        synchronize(loaded.engine.device)
        profiled_s = (time.perf_counter() - start) / steps
    times: defaultdict[str, float] = defaultdict(float)
    calls: defaultdict[str, int] = defaultdict(int)
    for event in seen.key_averages():
        spent = event.self_device_time_total if cuda else event.self_cpu_time_total
        if spent and event.key != "cudaDeviceSynchronize":
            times[operation_group(event.key)] += spent / 1e6 / steps
            calls[operation_group(event.key)] += event.count // steps
    times["Python between operations"] = max(profiled_s - sum(times.values()), 0.0)
    return [
        {
            "part": part,
            "share %": round(100 * spent / profiled_s, 1),
            "ms": round(spent / profiled_s * step_s * 1e3, 3),
        }
        | {"calls": calls[part]}
        for part, spent in sorted(times.items(), key=lambda item: -item[1])
    ]


def lower_bound(model: StreamChat, loaded: LoadedEngine, dialogs: int, step_s: float) -> dict[str, Any]:
    """The bytes and multiplications of a step, and the least time that this machine needs for them."""
    weights = decode_bytes(model)
    read = weights + loaded.engine.frame_pages.allocated_bytes + loaded.text_read_bytes
    multiplied = 2 * dialogs * weights // next(model.language.parameters()).element_size()
    device, dtype = loaded.engine.device, model.dtype
    found = limits(device, dtype, read)
    fits = weights < 24 * 2**20 and device.type == "cpu"
    speed = found["bandwidth_at_step_gb_s"] if fits else found["bandwidth_memory_gb_s"]
    bytes_s, arithmetic_s = read / speed / 1e9, multiplied / found["arithmetic_gflop_s"] / 1e9
    bound = max(bytes_s, arithmetic_s)
    return {
        "dialogs": dialogs,
        "ms/step": round(step_s * 1e3, 3),
        "MB read": round(read / 1e6, 2),
        "GFLOP": round(multiplied / 1e9, 3),
        "floor bytes ms": round(bytes_s * 1e3, 3),
        "floor arithmetic ms": round(arithmetic_s * 1e3, 3),
        "floor/step": round(bound / step_s, 3),
        **found,
    }


def make_plot(shape: str, parts: dict[int, list[dict[str, Any]]]) -> Plot:
    """Shares as bars, one chart per number of dialogs."""
    plot = Plot(f"Where one step's time goes, {shape}", len(parts))
    for axes, (dialogs, rows) in zip(plot.axes, parts.items(), strict=True):
        axes.barh([row["part"] for row in rows][::-1], [row["ms"] for row in rows][::-1])
        axes.set_xlabel(f"ms, {dialogs} dialog{'s' if dialogs > 1 else ''}")
    return plot


def measure(options: argparse.Namespace, device: torch.device, dtype: torch.dtype) -> dict[int, Any]:
    """Profile and limits for each number of dialogs."""
    config = make_config(options.shape, visual_tokens=options.visual_tokens, fifo_frames=options.frames)
    model = make_model(config, device, dtype)
    rounds = options.rounds or (5 if options.quick else 50)
    found: dict[int, Any] = {}
    for dialogs in options.dialogs:
        loaded = LoadedEngine(model, cameras=1, dialogs=dialogs)
        loaded.start_dialogs()
        loaded.step()
        step_s = median_s(loaded.step, device, rounds)
        found[dialogs] = {
            "floor": lower_bound(model, loaded, dialogs, step_s),
            "parts": time_by_group(loaded, rounds, step_s),
        }
        print_table([found[dialogs]["floor"]])
        print_table(found[dialogs]["parts"])
    return found


def main() -> None:
    """Read the command line, measure, keep, print."""
    parser = make_parser(__doc__)
    parser.add_argument("--shape", choices=SHAPES, default="tiny")
    parser.add_argument("--visual-tokens", type=int, default=0, help="a frame's, instead of the shape's own")
    parser.add_argument("--dialogs", type=int_list, default=[1, 32])
    parser.add_argument("--frames", type=int, default=32)
    options = parser.parse_args()
    device, dtype = setup(options)
    found = measure(options, device, dtype)
    result = {"shape": options.shape, "dtype": str(dtype), "frames": options.frames}
    plot = make_plot(options.shape, {dialogs: each["parts"] for dialogs, each in found.items()})
    save_result(result_name("profile", options.shape), result | {"dialogs": found}, plot, options, device)


if __name__ == "__main__":
    main()
