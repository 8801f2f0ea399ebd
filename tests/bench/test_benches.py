"""Every benchmark runs from its command line, in the smallest size: a table, a kept result, a plot, one JSON line."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.bench import bench_encode, bench_long, bench_peers, bench_profile, bench_sizes, bench_step
from tests.bench.measure.machine import arithmetic, bandwidth
from tests.bench.measure.peers import generate, hugging_face
from tests.bench.measure.shapes import decode_bytes, make_config, make_model, make_text, with_frames

CPU = torch.device("cpu")


class Bench:
    """Runs a benchmark from its command line, and reads its result and its output."""

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], folder: Path
    ) -> None:
        self.monkeypatch, self.capsys, self.folder = monkeypatch, capsys, folder

    def run(self, module: Any, *arguments: str) -> dict[str, Any]:
        common = ["--quick", "--rounds", "1", "--device", "cpu", "--threads", "1", "--out", str(self.folder)]
        self.monkeypatch.setattr(sys, "argv", [module.__name__, *common, *arguments])
        module.main()
        lines = self.capsys.readouterr().out.splitlines()
        result = json.loads(lines[-1])
        kept = self.folder / f"bench_{result['bench']}"
        assert json.loads(kept.with_suffix(".json").read_text()) == result
        assert kept.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
        assert len(lines) > 3
        assert {"date", "hardware", "torch", "threads", "load_of_others"} <= result.keys()
        return result


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Bench:
    return Bench(monkeypatch, capsys, tmp_path)


def test_step(bench: Bench) -> None:
    sizes = ("--dialogs", "1,32", "--cameras", "1,2", "--frames", "2,4", "--fifo", "4", "--serve", "2,2")
    result = bench.run(bench_step, *sizes)
    over = result["sweeps"]
    assert [row["dialogs"] for row in over["dialogs"]] == [1, 32]
    assert result["visual_memory_32_over_1"] == 1.0  # 32 dialogs on one camera hold one copy of its frames
    assert over["cameras"][1]["visual MB"] == pytest.approx(2 * over["cameras"][0]["visual MB"], rel=0.01)
    assert over["frames"][1]["visual MB"] > over["frames"][0]["visual MB"]
    assert result["between_tokens"][0]["frames/s taken"] > 0


def test_peers(bench: Bench) -> None:
    result = bench.run(bench_peers, "--shapes", "tiny", "--frames", "2", "--fifo", "4", "--tokens", "6")
    assert [row["equal at gates 0"] for row in result["generate"]] == [True]
    assert {row["tokens/s spoken"] for row in result["looking_again"]} == {5.0, 25.0}


def test_encode(bench: Bench) -> None:
    result = bench.run(bench_encode, "--batches", "1,2", "--cameras", "2", "--seconds", "0.3")
    assert {row["how"] for row in result["cameras"]} == {"together", "one by one"}
    assert all(row["pictures/s encoded"] > 0 for row in result["cameras"])


def test_long(bench: Bench) -> None:
    result = bench.run(bench_long, "--minutes", "1", "--cameras", "1", "--dialogs", "2", "--window", "128")
    assert result["questions"] > 4  # more turns than the window holds
    assert result["tokens"] > 128


def test_profile(bench: Bench) -> None:
    result = bench.run(bench_profile, "--dialogs", "1", "--frames", "4")
    found = result["dialogs"]["1"]
    assert sum(part["share %"] for part in found["parts"]) == pytest.approx(100, abs=2)
    assert 0 < found["floor"]["floor/step"] < 1


def test_sizes(bench: Bench) -> None:
    result = bench.run(bench_sizes)
    tiny, siglip = result["store"]
    assert 590 < siglip["KB/frame on the wire"] < 640
    assert siglip["KB/frame in Redis"] < 1.1 * siglip["KB/frame on the wire"]
    assert tiny["KB/frame on the wire"] < 60
    assert [row["cores, 5 looks/s"] > row["cores, 1 look/s"] > 0 for row in result["cameras"]] == [True] * 3
    assert [row["model"] for row in result["computed for an H100"]] == ["7b", "14b"]


def test_another_picture_is_another_result() -> None:
    with pytest.raises(ValueError, match="square"):
        make_config("tiny", visual_tokens=7)
    with pytest.raises(ValueError, match="wanted one of tiny"):
        make_config("70b")


def test_large_shapes_are_their_published_sizes() -> None:
    # Parameters in billions, embeddings included, of Qwen2.5-0.5B, 7B and 14B.
    for shape, published in (("0.5b", 0.494), ("7b", 7.616), ("14b", 14.770)):
        model = make_model(make_config(shape), torch.device("meta"), torch.bfloat16)
        number = sum(p.numel() for p in hugging_face(model).parameters())
        assert number / 1e9 == pytest.approx(published, abs=0.001), shape


def test_the_peer_has_our_very_weights() -> None:
    model = make_model(make_config("tiny"), CPU, torch.float32)
    peer = hugging_face(model)
    name = "layers.0.mlp.up_proj.weight"
    theirs, ours = peer.get_parameter(f"model.{name}"), model.language.get_parameter(name)
    assert theirs.data_ptr() == ours.data_ptr()
    prompt = make_text(model, 5)
    made = generate(peer, prompt, 3)
    with torch.inference_mode():
        logits = peer(torch.tensor([prompt])).logits
    assert made[0] == int(logits[0, -1].argmax())
    assert (with_frames(model, 3).config.fifo_frames, model.config.fifo_frames) == (3, 32)
    assert decode_bytes(model) < sum(p.numel() * 4 for p in model.parameters())


def test_limits_are_measured() -> None:
    assert bandwidth(CPU, 2**20, rounds=1) > 0
    assert arithmetic(CPU, torch.float32, size=64, rounds=1) > 0
