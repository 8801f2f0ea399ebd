"""The vision encoder: pictures per second over batch sizes, the gain of batching, and the cost of preprocessing.

    python tests/bench/bench_encode.py [--shapes tiny,so400m] [--batches 1,2,...] [--cameras 1,4,...] [--quick]

Prints tables, keeps result and plot in tests/bench/results/, and ends with one JSON line.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parent.parent.parent))
from model.checkpoint.folder import save_folder
from model.config import VisionConfig, preset
from model.network.pixels import to_pixels
from model.network.streamchat import StreamChat
from model.network.vision import VisionTower
from services.adapters.prometheus_recorder import PrometheusRecorder
from services.vision_encoder.vision_encoder import VisionEncoder
from tests.bench.measure.loaded_engine import FPS
from tests.bench.measure.machine import median_s
from tests.bench.measure.report import Plot, int_list, make_parser, print_table, save_result, setup

VISION = {
    "tiny": preset("tiny").vision,
    "so400m": VisionConfig(),
}  # So400m: the encoder of the large models
CAMERA_SIZE = (1280, 720)


def make_folder(shape: str, folder: Path, dtype: torch.dtype) -> Path:
    """A StreamChat folder with random weights, of whose parts only the vision encoder matters."""
    torch.manual_seed(0)
    save_folder(StreamChat(preset("tiny", vision=VISION[shape])).to(dtype), folder)
    return folder


def forward_times(
    tower: VisionTower, shape: str, batches: Sequence[int], device: torch.device, rounds: int
) -> list[dict[str, Any]]:
    """One forward pass over batch sizes, from raw pixels on the device."""
    size = tower.config.image_size
    rows: list[dict[str, Any]] = []
    for batch in batches:
        pixels = torch.randint(0, 256, (batch, size, size, 3), dtype=torch.uint8, device=device)
        with torch.inference_mode():
            took = median_s(lambda pixels=pixels: tower(pixels), device, rounds)
        rows.append(
            {
                "shape": shape,
                "pictures": batch,
                "ms/pass": round(took * 1e3, 2),
                "ms/picture": round(took / batch * 1e3, 3),
                "pictures/s": round(batch / took, 1),
            }
        )
    return rows


def preprocessing_times(shape: str, device: torch.device, rounds: int) -> dict[str, Any]:
    """From a decoded camera picture to the encoder's numbers: on the host, and on the device."""
    size = VISION[shape].image_size
    width, height = CAMERA_SIZE
    noise = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    frame = av.VideoFrame.from_ndarray(noise).reformat(format="yuv420p")
    small = to_pixels(frame, size)

    def normalise() -> None:
        pixels = torch.from_numpy(small[None]).to(device)
        pixels.permute(0, 3, 1, 2).to(torch.float32).div_(127.5).sub_(1.0)

    cpu = torch.device("cpu")
    return {
        "shape": shape,
        "camera picture": f"{width}x{height}",
        "to": f"{size}x{size}",
        "scale on host ms": round(median_s(lambda: to_pixels(frame, size), cpu, rounds * 4) * 1e3, 3),
        "copy and scale numbers on device ms": round(median_s(normalise, device, rounds * 4) * 1e3, 3),
        "KB sent as taken": width * height * 3 // 2000,
        "KB sent small": size * size * 3 // 1000,
    }


async def encode_in_real_time(encoder: VisionEncoder, cameras: int, span_s: float) -> list[float]:
    """Cameras at 5 FPS, each its own caller: the seconds that each picture took."""
    picture = bytes(encoder.size * encoder.size * 3)
    begin = time.perf_counter()
    times: list[float] = []

    async def camera(number: int) -> None:
        due = begin + number / cameras / FPS
        while due < begin + span_s:
            await asyncio.sleep(max(due - time.perf_counter(), 0))
            await encoder.encode([picture])
            now = time.perf_counter()
            times.append(now - due)
            due += (int((now - due) * FPS) + 1) / FPS  # frames that came meanwhile are skipped

    await asyncio.gather(*(camera(number) for number in range(cameras)))
    return times


def batch_counts(encoder: VisionEncoder) -> tuple[float, float]:
    """Passes and pictures so far, as the service counts them."""
    assert isinstance(encoder.recorder, PrometheusRecorder)
    value = encoder.recorder.registry.get_sample_value
    passes, pictures = (value(f"streamchat_encoder_batch_size_{part}") or 0.0 for part in ("count", "sum"))
    return passes, pictures


def service_times(
    folder: Path, shape: str, cameras: int, options: argparse.Namespace, device: torch.device
) -> list[Any]:
    """The service under live cameras: pictures of several taken together, and one by one; rounds in turn."""
    limits = {"together": options.max_pictures, "one by one": 1}
    encoders = {
        how: VisionEncoder(
            folder,
            device=str(device),
            threads=torch.get_num_threads(),
            max_pictures=limit,
            recorder=PrometheusRecorder("vision_encoder"),
        )
        for how, limit in limits.items()
    }
    times: dict[str, list[float]] = {how: [] for how in limits}
    for number in range(options.rounds * 2):
        how = list(limits)[(number + number // 2) % 2]
        times[how] += asyncio.run(encode_in_real_time(encoders[how], cameras, options.seconds))
    rows: list[Any] = []
    for how, encoder in encoders.items():
        num_passes, num_pictures = batch_counts(encoder)
        found = torch.tensor(times[how], dtype=torch.float64) * 1e3
        rows.append(
            {
                "shape": shape,
                "cameras": cameras,
                "how": how,
                "pictures/s offered": cameras * FPS,
                "pictures/s encoded": round(len(found) / options.seconds / options.rounds, 1),
                "pictures/pass": round(num_pictures / max(num_passes, 1), 2),
                "p50 ms": round(float(found.median()), 1),
                "p95 ms": round(float(found.quantile(0.95)), 1),
            }
        )
    return rows


def make_plot(sweep: Sequence[dict[str, Any]], served: Sequence[dict[str, Any]]) -> Plot:
    """Throughput over batches, and what cameras get."""
    plot = Plot("The vision encoder", 3)
    for shape in dict.fromkeys(row["shape"] for row in sweep):
        rows = [row for row in sweep if row["shape"] == shape]
        plot.line(0, [row["pictures"] for row in rows], [row["pictures/s"] for row in rows], shape)
    plot.label(0, "pictures in a pass", "pictures a second", log_x=True, log_y=True)
    for shape, how in dict.fromkeys((row["shape"], row["how"]) for row in served):
        rows = [row for row in served if (row["shape"], row["how"]) == (shape, how)]
        x = [row["cameras"] for row in rows]
        plot.line(1, x, [row["pictures/s encoded"] for row in rows], f"{shape}, {how}")
        plot.line(2, x, [row["p95 ms"] for row in rows], f"{shape}, {how}")
    plot.label(1, "cameras at 5 FPS", "pictures encoded a second", log_x=True)
    plot.label(2, "cameras at 5 FPS", "ms from offer to tokens, p95", log_x=True, log_y=True)
    return plot


def main() -> None:
    """Read the command line, measure, keep, print."""
    parser = make_parser(__doc__)
    parser.add_argument(
        "--shapes", help="of: tiny, so400m; a CPU is asked for single passes only of the latter"
    )
    parser.add_argument("--batches", type=int_list)
    parser.add_argument("--cameras", type=int_list)
    parser.add_argument("--max-pictures", type=int, default=16, help="encoded together")
    parser.add_argument("--seconds", type=float, default=0.0, help="of each round with live cameras")
    options = parser.parse_args()
    device, dtype = setup(options)
    quick, gpu = options.quick, device.type == "cuda"
    shapes = (options.shapes or ("tiny" if quick else "tiny,so400m")).split(",")
    options.rounds = options.rounds or (1 if quick else 5)
    options.seconds = options.seconds or (0.5 if quick else 4.0)
    batches = options.batches or ([1, 4] if quick else [1, 2, 4, 8, 16, 32, 64])
    cameras = options.cameras or ([4] if quick else [1, 4, 16, 64] + [256] * gpu)
    sweep: list[dict[str, Any]] = []
    served: list[dict[str, Any]] = []
    prepared = [preprocessing_times(shape, device, options.rounds) for shape in shapes]
    print_table(prepared)
    for shape in shapes:
        small = shape == "tiny" or gpu
        tower = VisionTower(VISION[shape]).to(device, dtype).eval()
        rounds = options.rounds if small else min(options.rounds, 3)
        sweep += forward_times(tower, shape, batches if small else [1, 2], device, rounds)
        if small:
            with tempfile.TemporaryDirectory() as folder:
                made_folder = make_folder(shape, Path(folder), dtype)
                for number in cameras:
                    served += service_times(made_folder, shape, number, options, device)
    print_table(sweep)
    print_table(served)
    gain = [
        one["pictures/s encoded"] / other["pictures/s encoded"]
        for one, other in zip(served[::2], served[1::2], strict=True)
    ]
    result = {
        "dtype": str(dtype),
        "preparing": prepared,
        "passes": sweep,
        "cameras": served,
        "together_over_one_by_one": [round(each, 3) for each in gain],
        "median_gain": round(statistics.median(gain), 3),
    }
    save_result("encode", result, make_plot(sweep, served), options, device)


if __name__ == "__main__":
    main()
