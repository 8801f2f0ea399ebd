"""One decoding step: its time over dialogs, cameras and frames, and the cost of new frames.

    python tests/bench/bench_step.py [--shape tiny] [--dialogs 1,2,...] [--cameras 1,2,...] [--frames 8,...] [--quick]

Every step attends to full rings. Prints tables, keeps result and plot in tests/bench/results/, and ends with one
JSON line. On a GPU try `--shape 7b`; `--serve` alone measures 64 dialogs on 8 cameras at 5 FPS.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent.parent.parent))
from model.network.streamchat import StreamChat
from tests.bench.measure.loaded_engine import FPS, LoadedEngine
from tests.bench.measure.machine import median_s, seconds
from tests.bench.measure.report import (
    Plot,
    int_list,
    make_parser,
    print_table,
    result_name,
    save_result,
    setup,
)
from tests.bench.measure.shapes import SHAPES, make_config, make_model, with_frames

CAMERA_SWEEP_DIALOGS = 64


@dataclass(frozen=True, slots=True)
class Case:
    """A point of a sweep."""

    dialogs: int
    cameras: int
    frames: int


def step_times(loaded_engines: Sequence[LoadedEngine], steps: int, rounds: int) -> list[float]:
    """Median seconds of a step of each engine. They take turns, so that other load on the machine hits all alike."""
    device = loaded_engines[0].engine.device
    for loaded in loaded_engines:
        loaded.start_dialogs()
        for _ in range(3):
            loaded.step()
    times: list[list[float]] = [[] for _ in loaded_engines]
    for _ in range(rounds):
        for found, loaded in zip(times, loaded_engines, strict=True):
            found += [seconds(loaded.step, device) for _ in range(steps)]
    return [statistics.median(found) for found in times]


def row(case: Case, loaded: LoadedEngine, step_s: float) -> dict[str, Any]:
    """A line of the table."""
    return {
        "dialogs": case.dialogs,
        "cameras": case.cameras,
        "frames": case.frames,
        "ms/step": round(step_s * 1e3, 3),
        "tokens/s": round(case.dialogs / step_s, 1),
        "visual MB": round(loaded.engine.frame_pages.allocated_bytes / 1e6, 3),
        "text MB/dialog": round(loaded.engine.text_pages.allocated_bytes / max(case.dialogs, 1) / 1e6, 3),
    }


def sweep(model: StreamChat, cases: Sequence[Case], steps: int, rounds: int) -> list[dict[str, Any]]:
    """All points of one sweep, on the same weights."""
    loaded_engines = [
        LoadedEngine(with_frames(model, c.frames), cameras=c.cameras, dialogs=c.dialogs) for c in cases
    ]
    times = step_times(loaded_engines, steps, rounds)
    return [row(*each) for each in zip(cases, loaded_engines, times, strict=True)]


def gaps(model: StreamChat, cameras: int, dialogs: int, span_s: float, rounds: int) -> dict[str, Any]:
    """Time between tokens with frames at 5 FPS per camera, and without, alternating."""
    loaded = LoadedEngine(model, cameras=cameras, dialogs=dialogs, answer=2048)
    loaded.decode_for(span_s / 4, FPS)
    frame_s = median_s(loaded.add_frame_everywhere, loaded.engine.device, rounds) / cameras
    found: dict[float, list[float]] = {0.0: [], FPS: []}
    waits: list[float] = []
    for number in range(rounds * 2):
        rate = (0.0, FPS)[(number + number // 2) % 2]  # without, with, with, without, ...
        times = loaded.decode_for(span_s, rate)
        found[rate] += times.gaps_s
        waits += times.waits_s
    without, with_frames = (torch.tensor(found[rate], dtype=torch.float64) * 1e3 for rate in (0.0, FPS))
    p99 = [float(times.quantile(0.99)) for times in (without, with_frames)]
    return {
        "cameras": cameras,
        "dialogs": dialogs,
        "p50 ms without": round(float(without.median()), 3),
        "p50 ms with": round(float(with_frames.median()), 3),
        "p99 ms without": round(p99[0], 3),
        "p99 ms with": round(p99[1], 3),
        "p99 ratio": round(p99[1] / p99[0], 3),
        "tokens/s with": round(dialogs / float(with_frames.mean()) * 1e3, 1),
        "ms/frame, all at once": round(frame_s * 1e3, 3),
        "frames/s taken": round(len(waits) / (span_s * rounds), 2),
        "frames/s offered": cameras * FPS,
        "frame to word p95 ms": round(float(torch.tensor(waits).quantile(0.95)) * 1e3, 1),
    }


def cases(options: argparse.Namespace, frames: int) -> Iterator[tuple[str, list[Case]]]:
    """The three sweeps."""
    yield "dialogs", [Case(dialogs, 1, frames) for dialogs in options.dialogs]
    many = min(CAMERA_SWEEP_DIALOGS, max(options.dialogs))
    yield "cameras", [Case(many, cameras, frames) for cameras in options.cameras if cameras <= many]
    yield "frames", [Case(1, 1, frames) for frames in options.frames]


def growth_to_32(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """A step's growth from one dialog to 32 on one camera."""
    at = {line["dialogs"]: line for line in rows}
    if 1 not in at or 32 not in at:
        return {}
    return {
        "step_32_over_1": round(at[32]["ms/step"] / at[1]["ms/step"], 3),
        "tokens_32_over_1": round(at[32]["tokens/s"] / at[1]["tokens/s"], 2),
        "visual_memory_32_over_1": round(at[32]["visual MB"] / at[1]["visual MB"], 3),
    }


def make_plot(shape: str, sweeps: dict[str, list[dict[str, Any]]]) -> Plot:
    """Step time over each of the three sizes."""
    plot = Plot(f"One decoding step, {shape}", 3)
    for chart, (name, rows) in enumerate(sweeps.items()):
        plot.line(chart, [line[name] for line in rows], [line["ms/step"] for line in rows])
        plot.label(chart, name, "ms a step", log_x=True, log_y=True)
    return plot


def main() -> None:
    """Read the command line, measure, keep, print."""
    parser = make_parser(__doc__)
    parser.add_argument("--shape", choices=SHAPES, default="tiny")
    parser.add_argument("--visual-tokens", type=int, default=0, help="a frame's, instead of the shape's own")
    parser.add_argument("--dialogs", type=int_list)
    parser.add_argument("--cameras", type=int_list)
    parser.add_argument("--frames", type=int_list)
    parser.add_argument("--fifo", type=int, default=32, help="frames in the first two sweeps and in the gaps")
    parser.add_argument("--serve", type=int_list, help="dialogs,cameras whose gaps are measured")
    options = parser.parse_args()
    quick = options.quick
    options.dialogs = options.dialogs or ([1, 32] if quick else [1, 2, 4, 8, 16, 32, 64, 128, 256])
    options.cameras = options.cameras or ([1, 4] if quick else [1, 2, 4, 8, 16, 32, 64])
    options.frames = options.frames or ([8, 32] if quick else [8, 16, 32, 64, 128, 256])
    rounds = options.rounds or (2 if quick else 5)
    device, dtype = setup(options)
    config = make_config(options.shape, visual_tokens=options.visual_tokens, fifo_frames=options.fifo)
    model = make_model(config, device, dtype)
    sweeps: dict[str, list[dict[str, Any]]] = {}
    for name, points in cases(options, options.fifo):
        print(f"over {name}")
        sweeps[name] = sweep(model, points, 3 if quick else 10, rounds)
        print_table(sweeps[name])
    served = [options.serve] if options.serve else [[1, 1], [8, 4]] if not quick else [[2, 2]]
    between = [gaps(model, cameras, dialogs, 0.5 if quick else 4.0, rounds) for dialogs, cameras in served]
    print("between tokens, with frames arriving and without")
    print_table(between)
    result = {"shape": options.shape, "dtype": str(dtype), "sweeps": sweeps, "between_tokens": between}
    save_result(
        result_name("step", options.shape),
        result | growth_to_32(sweeps["dialogs"]),
        make_plot(options.shape, sweeps),
        options,
        device,
    )


if __name__ == "__main__":
    main()
