"""Every figure in README and docs/ is the one in its result file, or the one that the code computes.

`QUOTED` makes each line as it stands in its page. After new results, the failing test prints the new lines.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest

from model.config import PROJECT_ROOT, preset
from model.engine.pages import camera_bytes, token_bytes
from tests.bench.bench_sizes import decoder_memory, gpu_limits

OTHERS = (
    "| dialogs a GPU |",
    "| `pretrain_stage",
    "| `sft`",
)  # rows with figures that are not ours, or are settings
PAGE_TOKENS = {"tiny": 64, "7b": 256, "14b": 256}  # on a CPU, on a GPU
WIDTHS = {"tiny": 4, "7b": 2, "14b": 2}  # bytes a number


def bench(name: str) -> Any:
    """A result in tests/bench/results."""
    return json.loads((PROJECT_ROOT / "tests" / "bench" / "results" / f"bench_{name}.json").read_text())


def accuracy() -> Any:
    """What streamchat-tiny gets right on the live world."""
    return json.loads((PROJECT_ROOT / "docs" / "live_world_accuracy.json").read_text())


def percent(share: float, digits: int = 1) -> str:
    return f"{share * 100:.{digits}f} %"


def readme() -> Iterator[str]:
    live, right = bench("live"), accuracy()["free"]["rows"][-1]
    carried = [row for row in bench("cameras")["rows"] if not row["lost"]]
    yield f"| {percent(right['after_live'])}; {percent(right['after_frozen'])} for the same model when it looks once"
    yield f"| {live['frame_age_p50_ms']:.0f} ms (p50), {live['frame_age_p95_ms']:.0f} ms (p95)"
    yield f"| Price of looking again before every token | {percent(1 - live['live_over_frozen'], 0)} of"
    yield f"carry at one picture a second | {carried[-1]['cameras']} without a lost frame"


def evaluation() -> Iterator[str]:
    found = accuracy()
    free, served = found["free"], found["served"]
    shares = ("before_live", "before_frozen", "after_live", "after_frozen")
    for row in free["rows"]:
        cells = " | ".join(percent(row[share]) for share in shares)
        yield f"| {row['question']} | {cells} | {row['words_after']} |"
    everything = free["rows"][-1]
    yield f"asked {free['questions']} questions about {free['clips']} held-out clips"
    yield f"{percent(everything['after_live'])} of the words about changes after the question are right"
    yield f"the same model gets {percent(everything['after_frozen'])} when it is frozen"
    yield f"{percent(free['training_forward'])} of all words are right by the same rule"
    yield f"on {served['clips']} other held-out clips, {percent(served['right'])} of {served['words']} state-"
    yield f"({percent(served['right_after'])} of those after the question)"
    yield f"Frame age is {served['frame_age_p50_ms']} ms at p50 and {served['frame_age_p95_ms']} ms at p95"
    yield f"in simulated time, {percent(served['simulated_right'])} are right"
    yield f"in the training forward {percent(served['training_forward'])}."


def engine() -> Iterator[str]:
    weights = accuracy()["weights"]
    for row in weights["rows"]:
        yield f"| {row['weights']} | {percent(row['live'])} | {percent(row['frozen'])} |"
    yield f"of streamchat-tiny on {weights['clips']} held-out live-world clips"
    yield f"one of the {weights['answers']} answers differs"


def training() -> Iterator[str]:
    held = [row["held_mb"] for row in bench("training")["rows"]]
    yield f"took {held[0]:.0f}, {held[1]:.0f} and {held[2]:.0f} MB a worker with 1, 2 and 4 workers"


def benchmarks() -> Iterator[str]:
    yield from _served()
    yield from _peers()
    yield from _step()
    yield from _profile()
    yield from _long()
    yield from _encode()


def _served() -> Iterator[str]:
    live = bench("live")
    for name, key in (
        ("frame age at decode", "frame_age"),
        ("time to first token", "time_to_first_token"),
        ("between tokens, at 5 a second", "between_tokens"),
    ):
        yield f"| {name} | {live[f'{key}_p50_ms']:.0f} ms | {live[f'{key}_p95_ms']:.0f} ms |"
    yield f"{live['cameras']} live cameras at 5 frames a second and {live['dialogs']} dialogs at once"
    yield f"{live['frames_dropped']} of {live['frames']} frames were dropped"
    tokens_s = live["flat_out_live_tokens_per_s"], live["flat_out_frozen_tokens_per_s"]
    yield f"{tokens_s[0]} tokens a second when they look again before every token, and {tokens_s[1]} frozen"
    yield f"costs {percent(1 - live['live_over_frozen'], 0)} (ratio {live['live_over_frozen']:.2f}"


def _peers() -> Iterator[str]:
    tiny, small = bench("peers"), bench("peers_0.5b")
    for name, digits, tokens, row in (
        ("streamchat-tiny", 3, 64, tiny["generate"][0]),
        ("Qwen2.5-0.5B", 1, 24, small["generate"][0]),
    ):
        ours, theirs = (f"{row[f'{who} ms/token']:.{digits}f} ms a token" for who in ("ours", "HF"))
        assert row["equal at gates 0"]
        yield f"| {name} | {row['visual tokens']} | {tokens} | {ours} | {theirs} | **{row['decode ratio']}** | all |"
    for row in tiny["looking_again"]:
        if row["tokens/s spoken"] == 5.0:
            times = " | ".join(f"{row[f'{who} ms/token']:.1f} ms" for who in ("ours", "LLaVA", "naive"))
            over = " | ".join(f"{row[f'{who} over ours']:.1f}" for who in ("LLaVA", "naive"))
            yield f"| tiny | {row['frames']} | {row['visual tokens']} | {times} | {over} |"
    fast = [row for row in tiny["looking_again"] if row["tokens/s spoken"] == 25.0]
    llava, naive = ([row[f"{who} over ours"] for row in fast] for who in ("LLaVA", "naive"))
    yield f"costs {min(llava):.1f} to {max(llava):.1f} times ours at streamchat-tiny's size"
    yield f"the naive way {min(naive):.1f} to {max(naive):.1f} times"
    few, many = (row for row in small["looking_again"] if row["tokens/s spoken"] == 5.0)
    yield f"costs {few['LLaVA over ours']:.1f} times ours with {few['frames']} frames and"
    yield f"{many['LLaVA over ours']:.1f} times with {many['frames']}, the naive way"
    yield f"{few['naive over ours']:.1f} and {many['naive over ours']:.1f} times."


def _step() -> Iterator[str]:
    step, wide = bench("step"), bench("step_wide")
    for row in step["sweeps"]["dialogs"]:
        cells = f"{row['ms/step']:.2f} | {row['tokens/s']:.0f} | {row['visual MB']:.2f} MB"
        yield f"| {row['dialogs']} | {cells} |"
    yield f"the tokens are {step['tokens_32_over_1']:.1f} times as many"
    yield f"({step['visual_memory_32_over_1']:.1f} times)"
    yield f"a step takes {step['step_32_over_1']:.2f} times as long"
    for row in (step["between_tokens"][0], wide["between_tokens"][1]):
        p50, p99 = (f"{row[f'{p} ms without']:.1f}, {row[f'{p} ms with']:.1f} ms" for p in ("p50", "p99"))
        yield (
            f"| {row['dialogs']} | {row['cameras']} | {p50} | {p99} | {row['p99 ratio']:.2f} |"
            f" {row['frame to word p95 ms']:.0f} ms |"
        )


def _profile() -> Iterator[str]:
    dialogs = bench("profile")["dialogs"]
    for num in ("1", "32"):
        row = dialogs[num]["floor"]
        floors = (
            f"{row['floor bytes ms']:.2f} ms | {row['floor arithmetic ms']:.2f} ms | {row['floor/step']:.0%}"
        )
        yield f"| {num} | {row['ms/step']:.2f} | {row['MB read']:.1f} MB | {floors.replace('%', ' %')} |"
        shares = ", ".join(f"{part['part']} {part['share %']:.0f} %" for part in dialogs[num]["parts"][:4])
        yield shares
    one, many = dialogs["1"]["floor"], dialogs["32"]["floor"]
    yield f"{one['bandwidth_at_step_gb_s']} GB/s over the bytes of one dialog's step"
    yield f"{many['bandwidth_at_step_gb_s']} GB/s over those of 32 dialogs'"
    yield f"{many['bandwidth_memory_gb_s']} GB/s from memory, {many['arithmetic_gflop_s']} GFLOP/s"


def _long() -> Iterator[str]:
    found = bench("long")
    keys = ("ms/step", "cpu ms/step", "ms/frame", "ms/question", "resident MB", "cache MB")
    digits = (2, 2, 3, 2, 1, 1)
    for part in ("first", "last"):
        cells = " | ".join(f"{found[part][key]:.{n}f}" for key, n in zip(keys, digits, strict=True))
        yield f"| {part} ten minutes | {cells} |"
    yield "| last over first | " + " | ".join(f"{found['last_over_first'][key]:.3f}" for key in keys) + " |"
    yield f"{found['minutes']} minutes of stream in simulated time ({found['took_s']:.0f} s)"
    yield f"{found['cameras']} cameras at 5 FPS."
    yield f"{found['dialogs']} dialogs ask {found['questions']} questions and hear {found['tokens']:,} tokens"


def _encode() -> Iterator[str]:
    found = bench("encode")
    speed = {(row["shape"], row["pictures"]): row["pictures/s"] for row in found["passes"]}
    yield f"{speed['tiny', 1]:.0f} pictures a second one by one, {speed['tiny', 16]:.0f} in passes of 16"
    yield f"{speed['tiny', 64]:.0f} in passes of 64"
    for num in (4, 16, 64):
        together, alone = (row for row in found["cameras"] if row["cameras"] == num)
        cells = " | ".join(
            f"{row['pictures/s encoded']:.0f} | {row['p95 ms']:.0f} ms" for row in (together, alone)
        )
        yield f"| {num} | {together['pictures/s offered']:.0f} a second | {cells} |"
    large = next(row for row in found["passes"] if row["shape"] == "so400m")
    yield f"SigLIP So400m needs {large['ms/picture'] / 1000:.1f} s a picture"


def sizing() -> Iterator[str]:
    for row in bench("cameras")["rows"]:
        keys = ("frames/s", "lost", "age p50 ms", "age p95 ms", "age max ms", "words/s", "machine cores")
        cells = " | ".join(str(row[key]) for key in keys)
        parts = " | ".join(str(row["cores"][name]) for name in ("FrameFifo", "VisionEncoder"))
        yield f"| {row['cameras']} | {cells} | {parts} | {row['MB']} |"
    sizes = bench("sizes")
    for row in sizes["cameras"]:
        numbers = f"{row['MB/s on Kafka']:.2f} | {row['decode ms']:.1f} ms | {row['sample ms']:.1f} ms"
        cores = " | ".join(f"{row[key]:.2f}" for key in ("cores, 1 look/s", "cores, 5 looks/s"))
        yield f"| {row['picture'].replace(' at', ',')} | {numbers} | {cores} |"
    for row in sizes["store"]:
        speeds = " | ".join(f"{row[f'MB/s a camera, {fps} FPS']:.2f} MB/s" for fps in (1, 5))
        times = ", ".join(f"{row[key]:.1f}" for key in ("write ms", "read ms", "server ms"))
        wire, held = f"{row['KB/frame on the wire']:.0f} KB", f"{row['MB a camera of 32 frames']} MB"
        yield f"| {row['entry']}: {row['visual tokens']} and JPEG | {wire} | {speeds} | {held} | {times} ms |"
    alone, together, siglip = (row["ms a picture"] for row in sizes["encoders"])
    yield f"{alone:.1f} ms a picture alone and {together:.1f} ms of 16 together"
    yield f"SigLIP takes {siglip / 1000:.1f} s a picture on a CPU thread"
    yield from _memory(sizes)


def _memory(sizes: Any) -> Iterator[str]:
    for row in sizes["memory"]:
        shape = row["model"]
        computed = decoder_memory(shape, WIDTHS[shape])
        assert row == computed, "bench_sizes.json is not what the code computes"
        yield _memory_row(row)
    for row in sizes["computed for an H100"]:
        assert row == gpu_limits(next(r for r in sizes["memory"] if r["model"] == row["model"]))
        speeds = (f"{row['step ms at least']:.1f} ms", f"{row['frames/s at most']:,}")
        room = f"{row['MB for cameras and dialogs'] / 1e3:.0f} GB"
        dialogs = " | ".join(str(row[f"dialogs beside {num} cameras"]) for num in (16, 64))
        yield f"| {row['model']} | {room} | {dialogs} | {speeds[0]} | {speeds[1]} |"


def _memory_row(row: Any) -> str:
    shape, width = row["model"], WIDTHS[row["model"]]
    config, page = preset(shape), PAGE_TOKENS[row["model"]]
    encoder = _encoder_bytes(shape, width) / 1e9
    reserved = (2048 // page + 2) * page * token_bytes(config, width) / 1e6
    camera = camera_bytes(config, width) / 1e6
    small = shape == "tiny"
    large = [row["weights GB"], row["weights GB"] + encoder, row["step GB"]]
    weights, whole, step = (f"{gb * 1000:.0f} MB" if small else f"{gb:.1f} GB" for gb in large)
    digits = 1 if small else 0
    texts = " | ".join(f"{mb:.{digits}f} MB" for mb in (camera, row["dialog MB"], reserved))
    frame = f"{row['frame GFLOP']:.2f}" if small else f"{row['frame GFLOP']:.0f}"
    kind = "float32" if small else "bfloat16"
    token = f"{token_bytes(config, width) / 1024:.4g} KiB"
    return f"| {shape}, {kind} | {weights} | {whole} | {token} | {texts} | {step} | {frame} GFLOP |"


def _encoder_bytes(shape: str, width: int) -> int:
    import torch

    from model.network.vision import VisionTower

    with torch.device("meta"):
        tower = VisionTower(preset(shape).vision)
    return sum(weight.numel() for weight in tower.parameters()) * width


QUOTED = {
    "README.md": readme,
    "docs/benchmarks.md": benchmarks,
    "docs/engine.md": engine,
    "docs/evaluation.md": evaluation,
    "docs/sizing.md": sizing,
    "docs/training.md": training,
}


def plain(text: str) -> str:
    """Without line breaks: a sentence may be wrapped anywhere."""
    return " ".join(text.split())


@pytest.mark.parametrize("page", QUOTED)
def test_figures_are_those_of_the_result_files(page: str) -> None:
    text = plain((PROJECT_ROOT / page).read_text())
    missing = [line for line in QUOTED[page]() if plain(line) not in text]
    assert missing == []


@pytest.mark.parametrize("page", QUOTED)
def test_no_row_of_a_table_has_another_figure(page: str) -> None:
    held = [plain(line) for line in QUOTED[page]()]
    rows = [plain(row) for row in body_rows((PROJECT_ROOT / page).read_text())]
    figures = [row for row in rows if re.search(r"\| \**\d", row) and not row.startswith(OTHERS)]
    assert [row for row in figures if not any(line in row or row in line for line in held)] == []


def body_rows(text: str) -> Iterator[str]:
    """The rows of all tables, without their heads."""
    lines = text.splitlines()
    for number, line in enumerate(lines):
        head = number + 1 < len(lines) and lines[number + 1].startswith("| ---")
        if line.startswith("|") and not line.startswith("| ---") and not head:
            yield line
