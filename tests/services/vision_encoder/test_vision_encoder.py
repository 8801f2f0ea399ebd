"""The encoder service: the same tokens as the model's own tower, whatever is batched with what."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from model.checkpoint.folder import load_model
from services.adapters.prometheus_recorder import PrometheusRecorder
from services.messages.video import VisualTokens
from services.vision_encoder.vision_encoder import VisionEncoder


@pytest.fixture(scope="module")
def encoder(random_folder: Path) -> VisionEncoder:
    return VisionEncoder(random_folder, recorder=PrometheusRecorder("vision_encoder"))


def pictures(num: int) -> list[bytes]:
    return [
        np.random.default_rng(i).integers(0, 256, (96, 96, 3), dtype=np.uint8).tobytes() for i in range(num)
    ]


async def test_tokens_are_those_of_the_model(encoder: VisionEncoder, random_folder: Path) -> None:
    got = await encoder.encode(pictures(3))
    pixels = torch.frombuffer(bytearray(b"".join(pictures(3))), dtype=torch.uint8).view(3, 96, 96, 3)
    with torch.inference_mode():
        wanted = load_model(random_folder).vision(pixels)
    for one, right in zip(got, wanted, strict=True):
        assert (one.shape, one.dtype) == ((9, 160), "float32")
        values = np.frombuffer(one.data, dtype=np.float32).reshape(one.shape)
        np.testing.assert_allclose(values, right.numpy(), atol=1e-5)


async def test_nothing_gives_nothing(encoder: VisionEncoder) -> None:
    assert await encoder.encode([]) == []


async def test_a_picture_of_the_wrong_size_is_named(encoder: VisionEncoder) -> None:
    with pytest.raises(ValueError, match="wanted 27648"):
        await encoder.encode([b"short"])


def batches(encoder: VisionEncoder) -> tuple[float, float]:
    """Passes so far, and pictures in them."""
    assert isinstance(encoder.recorder, PrometheusRecorder)
    registry, name = encoder.recorder.registry, "streamchat_encoder_batch_size"
    counts = [registry.get_sample_value(f"{name}_{part}") for part in ("count", "sum")]
    assert counts[0] is not None
    assert counts[1] is not None
    return counts[0], counts[1]


class Gate:
    """Holds the encoder's passes until it is opened; what arrives meanwhile has to gather."""

    def __init__(self, encoder: VisionEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
        self.opened, self.entered = threading.Event(), threading.Event()
        tower = encoder.tower.forward

        def forward(pixels: torch.Tensor) -> torch.Tensor:
            self.entered.set()
            assert self.opened.wait(30)
            return tower(pixels)

        monkeypatch.setattr(encoder.tower, "forward", forward)

    async def hold(self, encoder: VisionEncoder, *cameras: int) -> list[asyncio.Task[list[VisualTokens]]]:
        """A call that is being encoded, and behind it one with so many pictures for each camera."""
        tasks = [asyncio.create_task(encoder.encode(pictures(1)))]
        await asyncio.to_thread(self.entered.wait, 30)
        tasks += [asyncio.create_task(encoder.encode(pictures(num))) for num in cameras]
        await asyncio.sleep(0)  # they have been handed over when this task has its turn again
        return tasks


async def test_what_comes_during_a_pass_is_encoded_together(
    encoder: VisionEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = await encoder.encode(pictures(3))
    gate, before = Gate(encoder, monkeypatch), batches(encoder)
    tasks = await gate.hold(encoder, 1, 2, 3)
    gate.opened.set()
    answers = await asyncio.gather(*tasks)
    assert [len(answer) for answer in answers] == [1, 1, 2, 3]
    assert batches(encoder) == (before[0] + 2, before[1] + 7)  # the first alone, then all cameras' together
    for answer in answers:
        for got, wanted in zip(answer, alone, strict=False):
            one, other = (np.frombuffer(tokens.data, dtype=np.float32) for tokens in (got, wanted))
            np.testing.assert_allclose(one, other, atol=1e-5)


async def test_no_pass_is_larger_than_it_may_be_unless_one_call_is(
    random_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = VisionEncoder(random_folder, max_pictures=4, recorder=PrometheusRecorder("vision_encoder"))
    gate = Gate(small, monkeypatch)
    tasks = await gate.hold(small, 2, 2, 1, 6)
    gate.opened.set()
    assert [len(answer) for answer in await asyncio.gather(*tasks)] == [1, 2, 2, 1, 6]
    assert batches(small) == (4, 12)  # 1; 2 + 2; 1; 6


async def test_a_failed_pass_is_told_to_its_callers_and_a_caller_who_left_costs_nobody(
    encoder: VisionEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate(encoder, monkeypatch)
    first, left, right = await gate.hold(encoder, 1, 1)
    left.cancel()
    gate.opened.set()
    assert len(await right) == len(await first) == 1
    with pytest.raises(asyncio.CancelledError):
        await left

    def broken(pixels: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("out of memory")

    with monkeypatch.context() as patched:
        patched.setattr(encoder.tower, "forward", broken)
        with pytest.raises(RuntimeError, match="out of memory"):
            await encoder.encode(pictures(1))
    assert len(await encoder.encode(pictures(1))) == 1
