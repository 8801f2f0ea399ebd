"""StreamChat against alternatives: same machine, same run, same weights.

    python tests/bench/bench_peers.py [--shapes tiny,0.5b] [--frames 8,16,...] [--quick]

1. Hugging Face `generate` on the language model alone, no video, batch 1; and with our gates at 0 the same tokens.
2. LLaVA: frames in the self-attention's context, with a new prefill for each new frame (5 a second).
3. The paper without caching: every V-FFN over the whole window before every token.

Prints tables, keeps result and plot in tests/bench/results/, and ends with one JSON line.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent.parent.parent))
from model.engine.options import DialogOptions
from model.network.streamchat import StreamChat
from tests.bench.measure.loaded_engine import FPS, LoadedEngine
from tests.bench.measure.machine import seconds
from tests.bench.measure.peers import Llava, generate, hugging_face
from tests.bench.measure.report import (
    Plot,
    int_list,
    make_parser,
    print_table,
    result_name,
    save_result,
    setup,
)
from tests.bench.measure.shapes import make_config, make_frames, make_model, make_text, with_frames

PROMPT = 64  # tokens of the question
PACES = (1, 5)  # tokens a frame: 5 and 25 a second at 5 FPS


def answer(loaded: LoadedEngine, name: str, prompt: list[int], num: int) -> list[int]:
    """Ask our engine a question; returns the answer's tokens."""
    loaded.engine.open_dialog(name, loaded.cameras[0], prompt, DialogOptions(max_tokens=num))
    made = [loaded.engine.step([name])[0].token_id for _ in range(num)]
    loaded.engine.close_dialog(name)
    return made


def set_gates(model: StreamChat, value: float) -> None:
    """Set all cross gates to one value. At 0 the network is the plain language model."""
    with torch.no_grad():
        for name, weight in model.language.named_parameters():
            if name.endswith("gate_cross"):
                weight.fill_(value)


def interleaved_times(
    calls: Sequence[Callable[[], object]], device: torch.device, rounds: int
) -> list[list[float]]:
    """Seconds of each call in each round. Calls alternate, in changing order, after one round that is not counted."""
    times: list[list[float]] = [[] for _ in calls]
    for number in range(rounds + 1):
        order = list(range(len(calls)))
        for which in order if number % 2 else reversed(order):
            took = seconds(calls[which], device)
            if number:
                times[which].append(took)
    return times


def ratio(above: Sequence[float], below: Sequence[float]) -> float:
    """The median of the ratios of all rounds."""
    return round(statistics.median(a / b for a, b in zip(above, below, strict=True)), 3)


def against_generate(model: StreamChat, shape: str, num: int, rounds: int) -> dict[str, Any]:
    """Whole answers, including prefill, and the cost of each further token."""
    peer, prompt = hugging_face(model), make_text(model, PROMPT)
    set_gates(model, 0.0)
    loaded = LoadedEngine(model, cameras=1, dialogs=1, prompt=PROMPT, answer=num)
    equal = answer(loaded, "same", prompt, num) == generate(peer, prompt, num)
    set_gates(model, model.config.gate_init)
    loaded = LoadedEngine(model, cameras=1, dialogs=1, prompt=PROMPT, answer=num)
    calls = [
        lambda: answer(loaded, "long", prompt, num),
        lambda: generate(peer, prompt, num),
        lambda: answer(loaded, "short", prompt, 1),
        lambda: generate(peer, prompt, 1),
    ]
    ours, theirs, first, their_first = interleaved_times(calls, loaded.engine.device, rounds)
    decode = [(a - b) / (num - 1) for a, b in zip(ours, first, strict=True)]
    their_decode = [(a - b) / (num - 1) for a, b in zip(theirs, their_first, strict=True)]
    return {
        "shape": shape,
        "frames": model.config.fifo_frames,
        "visual tokens": model.config.fifo_frames * model.config.vision.num_visual_tokens,
        "equal at gates 0": equal,
        "ours ms/token": round(statistics.median(decode) * 1e3, 3),
        "HF ms/token": round(statistics.median(their_decode) * 1e3, 3),
        "ours tokens/s": round(1 / statistics.median(decode), 1),
        "HF tokens/s": round(1 / statistics.median(their_decode), 1),
        "decode ratio": ratio(their_decode, decode),
        "whole answer ratio": ratio(theirs, ours),
    }


def calls_per_frame(
    see: Callable[[], object], first: Callable[[], object], rest: Callable[[], object]
) -> Any:
    """The work for each new frame and the tokens after it, at each pace."""

    def tokens(num: int) -> Callable[[], None]:
        def call() -> None:
            see()
            first()
            for _ in range(num - 1):
                rest()

        return call

    return [tokens(num) for num in PACES]


def looking_again(model: StreamChat, shape: str, frames: int, rounds: int) -> list[dict[str, Any]]:
    """Cost of a token with a new frame before every token, and before every fifth."""
    model = with_frames(model, frames)
    prompt, features = make_text(model, PROMPT), make_frames(model, frames)
    loaded = LoadedEngine(model, cameras=1, dialogs=1, prompt=PROMPT)
    loaded.start_dialogs()
    llava = Llava(model, hugging_face(model), prompt)
    for frame in features:
        llava.add_frame(frame)
    calls = calls_per_frame(lambda: loaded.add_frame(loaded.cameras[0]), loaded.step, loaded.step)
    calls += calls_per_frame(
        lambda: llava.add_frame(features[0]), llava.next_token_with_new_frames, llava.next_token
    )

    def naively() -> None:
        recompute_frames(model, features)
        loaded.step()

    calls += calls_per_frame(lambda: None, naively, naively)
    times = interleaved_times(calls, loaded.engine.device, rounds)
    rows: list[dict[str, Any]] = []
    for pace, ours, theirs, slow in zip(PACES, times[:2], times[2:4], times[4:], strict=True):
        row = {
            "shape": shape,
            "frames": frames,
            "visual tokens": frames * model.config.vision.num_visual_tokens,
            "tokens/s spoken": pace * FPS,
            "ours ms/token": round(statistics.median(ours) / pace * 1e3, 3),
            "LLaVA ms/token": round(statistics.median(theirs) / pace * 1e3, 3),
            "naive ms/token": round(statistics.median(slow) / pace * 1e3, 3),
            "LLaVA over ours": ratio(theirs, ours),
            "naive over ours": ratio(slow, ours),
        }
        rows.append(row)
    return rows


@torch.inference_mode()
def recompute_frames(model: StreamChat, features: Tensor) -> object:
    """Adapter, V-FFNs, keys and values of the whole window: computed before every token without caching."""
    return model.frame_keys_values(features)


def make_plot(rows: Sequence[dict[str, Any]]) -> Plot:
    """Cost of a token over frames, one chart per shape, at a look per token."""
    shapes = list(dict.fromkeys(row["shape"] for row in rows))
    plot = Plot("A token that looks again, a new frame before each", len(shapes))
    for chart, shape in enumerate(shapes):
        picked = [row for row in rows if row["shape"] == shape and row["tokens/s spoken"] == FPS]
        for label in ("ours", "LLaVA", "naive"):
            costs = [row[f"{label} ms/token"] for row in picked]
            plot.line(chart, [row["frames"] for row in picked], costs, label)
        plot.label(chart, f"frames ({shape})", "ms a token", log_x=True, log_y=True)
    return plot


def measure(options: argparse.Namespace, device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """All three comparisons for each shape."""
    rounds = options.rounds or (1 if options.quick else 5)
    texts: list[dict[str, Any]] = []
    looks: list[dict[str, Any]] = []
    for shape in options.shapes.split(","):
        model = make_model(make_config(shape, fifo_frames=options.fifo), device, dtype)
        texts.append(against_generate(model, shape, options.tokens, rounds))
        print_table(texts[-1:])
        patches = options.visual_tokens if shape != "tiny" else 0
        if patches:  # a CPU needs minutes to read LLaVA's context of a large model: fewer tokens a frame
            model = make_model(make_config(shape, visual_tokens=patches), device, dtype)
        for frames in options.frames:
            looks += looking_again(model, shape, frames, rounds)
        print_table([row for row in looks if row["shape"] == shape])
    return {"dtype": str(dtype), "generate": texts, "looking_again": looks}


def main() -> None:
    """Read the command line, measure, keep, print."""
    parser = make_parser(__doc__)
    parser.add_argument("--shapes", help="default: tiny,0.5b; 7b on a GPU; tiny when quick")
    parser.add_argument("--frames", type=int_list)
    parser.add_argument("--fifo", type=int, default=32, help="live frames in the comparison with generate")
    parser.add_argument("--tokens", type=int, default=0, help="of an answer")
    parser.add_argument("--visual-tokens", type=int, default=-1, help="a frame's in large shapes; 0: all 256")
    options = parser.parse_args()
    device, dtype = setup(options)
    large = "7b" if device.type == "cuda" else "tiny,0.5b"
    options.shapes = options.shapes or ("tiny" if options.quick else large)
    options.frames = options.frames or ([8] if options.quick else [8, 16, 32, 64, 128])
    options.tokens = options.tokens or (8 if options.quick else 64)
    if options.visual_tokens < 0:
        options.visual_tokens = 0 if device.type == "cuda" else 16
    result = measure(options, device, dtype)
    save_result(
        result_name("peers", options.shapes.split(",")[0]),
        result,
        make_plot(result["looking_again"]),
        options,
        device,
    )


if __name__ == "__main__":
    main()
