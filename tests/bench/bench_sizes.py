"""The needs of a camera and a dialog: bytes on Kafka and Redis, memory, and processor time of each step of a frame.

    python tests/bench/bench_sizes.py [--quick]

Real H.264 is decoded and sampled, real entries are written to and read from a real store; of models too large for this
machine the bytes are computed from their shapes. Times are CPU times, so others on the machine change little. Prints
tables, keeps the result in tests/bench/results/, and ends with one JSON line.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import psutil
import torch
from redis import Redis

sys.path.insert(0, str(Path(__file__).parent.parent.parent))
from model.config import VisionConfig, preset
from model.engine.pages import camera_bytes, token_bytes
from model.network.streamchat import StreamChat
from model.network.vision import VisionTower
from services.adapters.redis_frame_store import RedisFrameStore
from services.frame_fifo.camera_decoder import open_decoder
from services.local.embedded_servers import Store, start_store
from services.messages.video import VisualTokens
from services.ports.frame_store import BEFORE_ALL
from services.video.sampled_frame import SampledFrame, sample_frame
from tests.bench.measure.report import Plot, make_parser, print_table, save_result, setup
from tests.services.h264 import encoded

DIALOG_TOKENS = 2048  # of a dialog: question, answer, earlier turns
CAMERAS = ((640, 360), (1280, 720), (1920, 1080))
CAMERA_FPS = 15
KEYFRAME_S = 2
SIDE = 224  # of the square that SigLIP looks at
# An H100's specification. Lower bounds are computed from it; no GPU has been measured.
H100 = {"bytes": 80e9, "bytes_s": 3.35e12, "flop_s": 989e12}
GPU_SHARE = 0.9  # of its memory for weights, frames and text


def cpu_ms(call: Callable[[], object], times: int) -> float:
    """CPU time of this thread, of one call."""
    call()
    begin = time.thread_time()
    for _ in range(times):
        call()
    return (time.thread_time() - begin) / times * 1e3


def camera_costs(size: tuple[int, int], seconds: int) -> tuple[dict[str, Any], SampledFrame]:
    """What a camera of that size sends, and what its frames cost the FrameFifo; its last frame as it is sampled."""
    units = encoded(CAMERA_FPS * seconds, fps=CAMERA_FPS, gop=KEYFRAME_S * CAMERA_FPS, size=size)
    decoder, pictures = open_decoder("h264", 2**24), list[av.VideoFrame]()
    begin = time.thread_time()
    for unit in units:
        pictures = decoder.decode(av.Packet(bytes(unit))) or pictures
    decode_ms = (time.thread_time() - begin) / len(units) * 1e3
    sample_ms = cpu_ms(lambda: sample_frame(pictures[-1], 1.0, 1, SIDE).jpeg(), 20)
    cores = {fps: round((CAMERA_FPS * decode_ms + fps * sample_ms) / 1e3, 3) for fps in (1, 5)}
    return {
        "picture": f"{size[0]}x{size[1]} at {CAMERA_FPS} FPS",
        "MB/s on Kafka": round(sum(unit.size for unit in units) / seconds / 1e6, 3),
        "decode ms": round(decode_ms, 2),
        "sample ms": round(sample_ms, 2),
        "cores, 1 look/s": cores[1],
        "cores, 5 looks/s": cores[5],
    }, sample_frame(pictures[-1], 1.0, 1, SIDE)


def server_cpu_s(store: Store) -> float:
    """CPU seconds of the store so far."""
    times = psutil.Process(store.process.pid).cpu_times()
    return times.user + times.system


def store_costs(
    store: Store, name: str, tokens: VisualTokens, sampled: SampledFrame, num: int
) -> dict[str, Any]:
    """Entries of that size through the real store: bytes on the wire and in memory, CPU of writer, server, reader."""
    frames, client = RedisFrameStore(store.url), Redis.from_url(store.url)
    made = [replace(sampled, frame_id=f"{n + 1}-0").to_frame(name, tokens) for n in range(num)]
    before: Any = client.info("stats")
    empty: Any = client.info("memory")
    server, begin = server_cpu_s(store), time.thread_time()
    for frame in made:
        frames.append(frame, capacity=32)
    written_ms = (time.thread_time() - begin) / num * 1e3
    after: Any = client.info("stats")
    begin = time.thread_time()
    read = frames.newer({name: BEFORE_ALL}, block_s=0.0)
    read_ms = (time.thread_time() - begin) / len(read) * 1e3
    now: Any = client.info("memory")
    in_memory = (now["used_memory"] - empty["used_memory"]) / len(read)
    wire = (after["total_net_input_bytes"] - before["total_net_input_bytes"]) / num
    frames.close()
    return {
        "entry": name,
        "visual tokens": "x".join(map(str, tokens.shape)) + f" {tokens.dtype}",
        "KB/frame on the wire": round(wire / 1e3, 1),
        "KB/frame in Redis": round(in_memory / 1e3, 1),
        "MB/s a camera, 1 FPS": round(wire / 1e6, 3),
        "MB/s a camera, 5 FPS": round(5 * wire / 1e6, 3),
        "MB a camera of 32 frames": round(in_memory * 32 / 1e6, 1),
        "write ms": round(written_ms, 2),
        "read ms": round(read_ms, 2),
        "server ms": round((server_cpu_s(store) - server) / (num + len(read)) * 1e3, 2),
    }


def encoder_times(
    name: str, config: VisionConfig, batches: Sequence[int], times: int
) -> list[dict[str, Any]]:
    """CPU time of a picture in the vision encoder (random weights), on one thread."""
    tower = VisionTower(config).eval()
    rows: list[dict[str, Any]] = []
    for batch in batches:
        pixels = torch.zeros(batch, config.image_size, config.image_size, 3, dtype=torch.uint8)
        with torch.inference_mode():
            took_ms = cpu_ms(lambda pixels=pixels: tower(pixels), times)
        rows.append({"encoder": name, "pictures together": batch, "ms a picture": round(took_ms / batch, 2)})
    return rows


def decoder_memory(shape: str, width: int) -> dict[str, Any]:
    """Bytes of a decoder's weights, a camera's ring and a dialog's text; `width` is bytes a number."""
    config = preset(shape)
    with torch.device("meta"):
        model = StreamChat(config)
    sizes = {name: weight.numel() for name, weight in model.named_parameters()}
    per_frame = sum(n for name, n in sizes.items() if "visual_" in name or name.startswith("adapter"))
    keys_values = 2 * config.hidden_size * config.num_key_value_heads * config.head_dim
    per_frame += len(config.cross_layers) * keys_values
    per_step = sum(n for name, n in sizes.items() if name.startswith("language.") and "visual_" not in name)
    per_step -= 0 if config.tie_word_embeddings else sizes["language.embed_tokens.weight"]
    held = sum(n for name, n in sizes.items() if not name.startswith("vision."))
    return {
        "model": shape,
        "weights GB": round(held * width / 1e9, 3),
        "camera MB": round(camera_bytes(config, width) / 1e6, 2),
        "dialog MB": round(DIALOG_TOKENS * token_bytes(config, width) / 1e6, 2),
        "frame GFLOP": round(2 * config.vision.num_visual_tokens * per_frame / 1e9, 2),
        "step GB": round(per_step * width / 1e9, 3),
    }


def gpu_limits(row: dict[str, Any]) -> dict[str, Any]:
    """What an H100's memory holds, and what its bandwidth and arithmetic leave: computed, not measured."""
    room_mb = (GPU_SHARE * H100["bytes"] - row["weights GB"] * 1e9) / 1e6
    return {
        "model": row["model"],
        "MB for cameras and dialogs": round(room_mb),
        "dialogs beside 16 cameras": int((room_mb - 16 * row["camera MB"]) / row["dialog MB"]),
        "dialogs beside 64 cameras": int((room_mb - 64 * row["camera MB"]) / row["dialog MB"]),
        "step ms at least": round(row["step GB"] * 1e9 / H100["bytes_s"] * 1e3, 2),
        "frames/s at most": round(H100["flop_s"] / (row["frame GFLOP"] * 1e9)),
    }


def random_tokens(shape: tuple[int, int], dtype: str, width: int) -> VisualTokens:
    """Random visual tokens; only their size matters to a store."""
    return VisualTokens(shape=shape, dtype=dtype, data=os.urandom(shape[0] * shape[1] * width))


def main() -> None:
    """Read the command line, measure, keep, print."""
    options = make_parser(__doc__).parse_args()
    options.clock = "cpu"
    options.device = "cpu"
    device, _ = setup(options)
    found = [camera_costs(size, 1 if options.quick else 10) for size in CAMERAS]
    cameras, sampled = [row for row, _ in found], found[1][1]
    tiny, siglip = preset("tiny").vision, VisionConfig()
    entries = {
        "tiny": random_tokens((tiny.num_visual_tokens, tiny.hidden_size), "float32", 4),
        "SigLIP": random_tokens((siglip.num_visual_tokens, siglip.hidden_size), "bfloat16", 2),
    }
    with contextlib.ExitStack() as stack:
        store = start_store()
        stack.callback(store.stop)
        num = 40 if options.quick else 200
        on_redis = [store_costs(store, name, tokens, sampled, num) for name, tokens in entries.items()]
    encoders = encoder_times("tiny", tiny, (1, 16), 20)
    encoders += [] if options.quick else encoder_times("SigLIP", siglip, (1,), 2)
    memory = [decoder_memory("tiny", 4), decoder_memory("7b", 2), decoder_memory("14b", 2)]
    gpus = [gpu_limits(row) for row in memory[1:]]
    for rows in (cameras, on_redis, encoders, memory, gpus):
        print_table(rows)
    plot = Plot("A camera's bytes and its decoding", 2)
    for chart, key in ((0, "MB/s on Kafka"), (1, "cores, 5 looks/s")):
        plot.line(chart, [size[0] * size[1] / 1e6 for size in CAMERAS], [row[key] for row in cameras])
        plot.label(chart, "megapixels", key)
    result = {"cameras": cameras, "store": on_redis, "encoders": encoders, "memory": memory}
    save_result("sizes", result | {"computed for an H100": gpus}, plot, options, device)


if __name__ == "__main__":
    main()
