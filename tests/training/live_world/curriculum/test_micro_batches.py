"""Micro-batches of live-world questions: repeatable, in the order of the curriculum, on the right frames."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import PreTrainedTokenizerFast

from model.config import preset
from model.network.vision import VisionTower
from training.data.micro_batch import MicroBatch
from training.live_world.clip_frames import frame_file
from training.live_world.clips import Clip, dataset_labels, training_clips
from training.live_world.curriculum import micro_batches
from training.live_world.curriculum.micro_batches import LiveWorldMicroBatches, Numbers
from training.run.recipe import SFT_RECIPES, Recipe

RECIPE = replace(
    SFT_RECIPES["live_world"],
    global_batch=4,
    micro_batch=2,
    rows_per_clip=3,
    one_picture_steps=2,
    picture_steps=4,
)


def numbered(num_clips: int, num_frames: int = 100) -> Numbers:
    """Features that tell which frame of which clip they are of."""
    seen = np.arange(num_clips * num_frames, dtype=np.float32).reshape(num_clips, num_frames, 1, 1)
    return np.broadcast_to(seen, (num_clips, num_frames, 9, 2)).copy()


def parts_of(
    clips: list[Clip], tokenizer: PreTrainedTokenizerFast, recipe: Recipe = RECIPE
) -> LiveWorldMicroBatches:
    config = preset("tiny", vocab_size=len(tokenizer))
    return LiveWorldMicroBatches(clips, tokenizer, config, recipe, numbered(len(clips)))


def test_a_part_is_the_same_for_the_same_seed_and_number(
    clips: list[Clip], tokenizer: PreTrainedTokenizerFast
) -> None:
    one, other = parts_of(clips, tokenizer), parts_of(clips, tokenizer)
    blobs = [one.micro_batch(number).to_bytes() for number in range(6)]
    assert blobs == [other.micro_batch(number).to_bytes() for number in range(6)]
    assert len(set(blobs)) == 6
    reseeded = parts_of(clips, tokenizer, replace(RECIPE, seed=2))
    assert reseeded.micro_batch(0).to_bytes() != blobs[0]


def most_seen(part: MicroBatch) -> int:
    return int(part.batch.visible.sum(-1).max())


def test_first_one_picture_then_several_then_dialogs(
    clips: list[Clip], tokenizer: PreTrainedTokenizerFast
) -> None:
    parts = parts_of(clips, tokenizer)
    assert {most_seen(parts.micro_batch(number)) for number in range(4)} == {1}  # two parts a step, two steps
    later = [most_seen(parts.micro_batch(number)) for number in range(4, 8)]
    assert max(later) > 1
    num_frames = {part.batch.visible.shape[2] for part in map(parts.micro_batch, range(8, 40))}
    assert parts.window in num_frames
    assert all(parts.micro_batch(number).batch.visible.shape[2] < parts.window for number in range(8))


def test_scenes_that_follow_each_other_meet_where_something_changes(
    clips: list[Clip], tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(micro_batches, "SCENE_SHARES", (0.0, 0.0, 1.0))
    parts = parts_of(clips, tokenizer)
    part = parts.flip_books(np.random.default_rng(1), [1], capacity=16)
    assert part.features is not None
    numbers = part.features[0, :, 0, 0].astype(int) - 100  # of the second clip
    first, second = numbers.reshape(-1, 2, 3).transpose(1, 0, 2)
    assert np.array_equal(second, first + 3)
    assert set(second[:, 0]) <= set(parts.changes(1))


def test_captions_end_where_something_has_just_changed(
    clips: list[Clip], tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(micro_batches, "CHANGE_SHARE", 1.0)
    parts = parts_of(clips, tokenizer)
    changed: set[int] = set()
    for seed in range(8):
        part = parts.captions(np.random.default_rng(seed), [1], capacity=16)
        assert part.features is not None
        newest = int(part.features[0, -1, 0, 0]) - 100  # of the second clip
        assert newest in {int(c) + late for c in parts.changes(1) for late in (0, 1)}
        changed.add(newest)
    assert len(changed) > 1


def test_without_dense_instructions_all_is_answered_at_once(
    clips: list[Clip], tokenizer: PreTrainedTokenizerFast
) -> None:
    parts = parts_of(clips, tokenizer, replace(RECIPE, kinds=("offline", "image", "text")))
    for number in range(12):
        batch = parts.micro_batch(number).batch
        for row in range(len(batch.loss_mask)):
            seen = batch.visible[row][batch.loss_mask[row]]
            assert (seen == seen[0]).all()


def test_features_and_truth_are_those_of_the_frames(
    clips: list[Clip], tokenizer: PreTrainedTokenizerFast
) -> None:
    parts = parts_of(clips, tokenizer)
    truths = dataset_labels(clips, 100, 5.0)
    for number in range(12):
        part = parts.micro_batch(number)
        assert part.features is not None
        assert part.truth is not None
        which = part.features[:, :, 0, 0].astype(int)
        np.testing.assert_array_equal(part.truth, truths.reshape(-1, 9, 3)[which])


def test_pictures_go_along_where_the_encoder_learns(
    clips: list[Clip], tokenizer: PreTrainedTokenizerFast
) -> None:
    config = preset("tiny", vocab_size=len(tokenizer))
    pictures = np.zeros((len(clips), 100, 8, 8, 3), np.uint8)
    part = LiveWorldMicroBatches(clips, tokenizer, config, RECIPE, pictures).micro_batch(0)
    assert part.features is None
    assert part.pictures is not None
    assert part.slots is not None
    num_frames = part.batch.visible.shape[2]
    assert part.pictures.shape == (2 * num_frames, 8, 8, 3)
    assert part.slots.tolist() == list(range(2 * num_frames))


def test_an_empty_part_counts_nothing(clips: list[Clip], tokenizer: PreTrainedTokenizerFast) -> None:
    part = parts_of(clips, tokenizer).empty(-1)
    assert (part.weight, part.samples, part.num_clips, part.index) == (0.0, (), 0, -1)


def test_frames_are_decoded_and_encoded_once(clips: list[Clip], tmp_path: Path) -> None:
    config = preset("tiny")
    torch.manual_seed(0)
    tower = VisionTower(config.vision).eval()
    pictures = frame_file(clips, config, None, tmp_path)
    features = frame_file(clips, config, tower, tmp_path)
    with torch.inference_mode():
        wanted = tower(torch.from_numpy(np.load(pictures)[1, 7:9]))
    torch.testing.assert_close(torch.from_numpy(np.load(features)[1, 7:9]), wanted)
    made = features.stat().st_mtime_ns
    assert frame_file(clips, config, tower, tmp_path).stat().st_mtime_ns == made
    torch.nn.init.ones_(tower.encoder.post_layernorm.bias)
    assert frame_file(clips, config, tower, tmp_path) != features


def test_held_out_clips_are_refused(held_out: list[Clip]) -> None:
    with pytest.raises(ValueError, match="seeds from 1000000 on are held out"):
        training_clips([held_out[0].path.parent])
