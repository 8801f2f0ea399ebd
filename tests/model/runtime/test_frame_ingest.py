"""Frames taken in beside decoding: the same numbers as at once, whatever the pieces."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from model.engine.work_budget import WorkBudget
from model.network.streamchat import StreamChat
from model.runtime.frame_ingest import FrameIngest, FrameKeysValues, NewFrame
from model.runtime.packed_model import PackedModel


def frames(model: StreamChat, camera: str, num: int) -> list[NewFrame]:
    vision = model.config.vision
    torch.manual_seed(num)
    return [
        NewFrame(camera, str(n), n / 5, torch.randn(vision.num_visual_tokens, vision.hidden_size))
        for n in range(num)
    ]


def all_of(ingest: FrameIngest) -> tuple[list[tuple[NewFrame, FrameKeysValues]], int]:
    ready: list[tuple[NewFrame, FrameKeysValues]] = []
    num_pieces = 0
    while ingest.busy:
        ready += ingest.run_piece(math.inf)
        num_pieces += 1
    return ready, num_pieces


def stacked(keys_values: FrameKeysValues) -> list[Tensor]:
    return [part for pair in keys_values for part in pair]


@pytest.mark.parametrize("size", [1, 4, 9, 1000])
def test_pieces_give_what_the_network_gives(model: StreamChat, size: int):
    ingest = FrameIngest(model, PackedModel(model))
    ingest.budget = WorkBudget(size, size)
    new = [*frames(model, "a", 3), *frames(model, "b", 2)]
    ingest.add(new[:3], 9)
    ingest.add(new[3:], 9)
    ready, num_pieces = all_of(ingest)
    num_chunks = -(-5 * model.config.vision.num_visual_tokens // size)
    assert num_pieces == num_chunks * (len(model.config.cross_layers) + 1) + 1
    assert [frame for frame, _ in ready] == new
    with torch.no_grad():
        for frame, keys_values in ready:
            wanted = stacked(model.frame_keys_values(frame.features))
            torch.testing.assert_close(stacked(keys_values), wanted, atol=1e-5, rtol=1e-4)


def test_frames_that_would_fall_out_unseen_are_not_computed(model: StreamChat):
    ingest = FrameIngest(model, PackedModel(model))
    new, others = frames(model, "a", 6), frames(model, "b", 2)
    ingest.add(others, 4)
    ingest.add(new[:3], 4)
    ingest.add(new[3:], 4)
    ingest.drop_camera("b")
    assert [frame for frame, _ in all_of(ingest)[0]] == new[2:]


def test_a_camera_that_is_dropped_loses_its_frames_in_the_batch_too(model: StreamChat):
    """Added again, it must not show frames of its former life."""
    ingest = FrameIngest(model, PackedModel(model))
    new, others = frames(model, "a", 2), frames(model, "b", 2)
    ingest.add(new, 4)
    ingest.add(others, 4)
    ingest.run_piece(math.inf)
    ingest.drop_camera("a")
    again = frames(model, "a", 1)
    ingest.add(again, 4)
    assert [frame for frame, _ in all_of(ingest)[0]] == [*others, *again]


def test_a_frame_that_fails_is_lost_alone(small: StreamChat):
    ingest = FrameIngest(small, PackedModel(small))
    new = frames(small, "a", 3)
    broken = NewFrame("b", "broken", 0.0, new[0].features[:, 1:])
    for frame in (new[0], broken, *new[1:]):
        ingest.add([frame], 4)
    ready: list[NewFrame] = []
    num_errors = 0
    while ingest.busy:
        try:
            ready += [frame for frame, _ in ingest.run_piece(math.inf)]
        except RuntimeError:
            num_errors += 1
    assert (ready, num_errors, ingest.num_skipped) == (new, 1, 1)
