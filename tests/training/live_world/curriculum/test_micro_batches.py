"""Micro-batches of live-world questions: repeatable, in the order of the curriculum, with the right frames."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import PreTrainedTokenizerFast

from model.config import preset
from model.network.streamchat import StreamChat
from model.network.vision import VisionTower
from tests.training.served_logits import SimulatedCamera, logits_of, row_of, some_features
from training.data.micro_batch import MicroBatch
from training.live_world.clip_frames import frame_file
from training.live_world.clips import Clip, dataset_labels, training_clips
from training.live_world.curriculum import micro_batches
from training.live_world.curriculum.micro_batches import LiveWorldMicroBatches, Numbers
from training.live_world.world import make_world
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
    """Features whose values are numbers of frames, counted over all clips."""
    seen = np.arange(num_clips * num_frames, dtype=np.float32).reshape(num_clips, num_frames, 1, 1)
    return np.broadcast_to(seen, (num_clips, num_frames, 9, 2)).copy()


def micro_batches_of(
    clips: list[Clip], tokenizer: PreTrainedTokenizerFast, recipe: Recipe = RECIPE
) -> LiveWorldMicroBatches:
    config = preset("tiny", vocab_size=len(tokenizer))
    return LiveWorldMicroBatches(clips, tokenizer, config, recipe, numbered(len(clips)))


def test_a_micro_batch_depends_only_on_seed_and_index(
    clips: list[Clip], tokenizer: PreTrainedTokenizerFast
) -> None:
    one, other = micro_batches_of(clips, tokenizer), micro_batches_of(clips, tokenizer)
    blobs = [one.micro_batch(number).to_bytes() for number in range(6)]
    assert blobs == [other.micro_batch(number).to_bytes() for number in range(6)]
    assert len(set(blobs)) == 6
    reseeded = micro_batches_of(clips, tokenizer, replace(RECIPE, seed=2))
    assert reseeded.micro_batch(0).to_bytes() != blobs[0]


def most_seen(batch: MicroBatch) -> int:
    return int(batch.tokens.visible.sum(-1).max())


def test_the_curriculum_has_one_picture_then_several_then_dialogs(
    clips: list[Clip], tokenizer: PreTrainedTokenizerFast
) -> None:
    batches = micro_batches_of(clips, tokenizer)
    assert {most_seen(batches.micro_batch(number)) for number in range(4)} == {1}  # two steps of two
    later = [most_seen(batches.micro_batch(number)) for number in range(4, 8)]
    assert max(later) > 1
    num_frames = {batch.tokens.visible.shape[2] for batch in map(batches.micro_batch, range(8, 40))}
    assert batches.window in num_frames
    assert all(batches.micro_batch(number).tokens.visible.shape[2] < batches.window for number in range(8))


def test_successive_scenes_meet_at_a_change(
    clips: list[Clip], tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(micro_batches, "SCENE_SHARES", (0.0, 0.0, 1.0))
    batches = micro_batches_of(clips, tokenizer)
    batch = batches.flip_books(np.random.default_rng(1), [1], capacity=16)
    assert batch.features is not None
    numbers = batch.features[0, :, 0, 0].astype(int) - 100  # of the second clip
    first, second = numbers.reshape(-1, 2, 3).transpose(1, 0, 2)
    assert np.array_equal(second, first + 3)
    assert set(second[:, 0]) <= set(batches.changes(1))


def test_captions_end_just_after_a_change(
    clips: list[Clip], tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(micro_batches, "CHANGE_SHARE", 1.0)
    batches = micro_batches_of(clips, tokenizer)
    changed: set[int] = set()
    for seed in range(8):
        batch = batches.captions(np.random.default_rng(seed), [1], capacity=16)
        assert batch.features is not None
        newest = int(batch.features[0, -1, 0, 0]) - 100  # of the second clip
        assert newest in {int(c) + late for c in batches.changes(1) for late in (0, 1)}
        changed.add(newest)
    assert len(changed) > 1


def test_without_dense_instructions_answers_see_one_set_of_frames(
    clips: list[Clip], tokenizer: PreTrainedTokenizerFast
) -> None:
    batches = micro_batches_of(clips, tokenizer, replace(RECIPE, kinds=("offline", "image", "text")))
    for number in range(12):
        batch = batches.micro_batch(number).tokens
        for row in range(len(batch.loss_mask)):
            seen = batch.visible[row][batch.loss_mask[row]]
            assert (seen == seen[0]).all()


def test_features_and_labels_belong_to_the_frames(
    clips: list[Clip], tokenizer: PreTrainedTokenizerFast
) -> None:
    batches = micro_batches_of(clips, tokenizer)
    labels = dataset_labels(clips, 100, 5.0)
    for number in range(12):
        batch = batches.micro_batch(number)
        assert batch.features is not None
        assert batch.place_labels is not None
        which = batch.features[:, :, 0, 0].astype(int)
        np.testing.assert_array_equal(batch.place_labels, labels.reshape(-1, 9, 3)[which])


def test_micro_batches_have_pictures_if_the_encoder_learns(
    clips: list[Clip], tokenizer: PreTrainedTokenizerFast
) -> None:
    config = preset("tiny", vocab_size=len(tokenizer))
    pictures = np.zeros((len(clips), 100, 8, 8, 3), np.uint8)
    batch = LiveWorldMicroBatches(clips, tokenizer, config, RECIPE, pictures).micro_batch(0)
    assert batch.features is None
    assert batch.pictures is not None
    num_frames = batch.tokens.visible.shape[2]
    assert batch.pictures.shape == (2 * num_frames, 8, 8, 3)


def test_an_empty_micro_batch_has_no_loss(clips: list[Clip], tokenizer: PreTrainedTokenizerFast) -> None:
    batch = micro_batches_of(clips, tokenizer).empty(-1)
    assert (batch.loss_weight, batch.sample_ids, batch.num_clips, batch.index) == (0.0, (), 0, -1)


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


@pytest.mark.parametrize("task", ["captions", "dialogs"])
def test_training_has_the_logits_of_the_engine_on_the_same_clip(
    tokenizer: PreTrainedTokenizerFast, random_model: StreamChat, task: str
) -> None:
    """Training cuts windows out of clips. The engine gets the frames of the camera from the first visible one on."""
    clips = [Clip(path=Path(), world=make_world(3, index)) for index in range(3)]
    features = torch.stack([some_features(100, clip) for clip in range(3)])
    numbers = np.broadcast_to(np.arange(100, dtype=np.float32)[None, :, None, None], (3, 100, 1, 1))

    def make(clip_frames: Numbers) -> MicroBatch:
        recipe = replace(SFT_RECIPES["live_world"], rows_per_clip=4)
        batches = LiveWorldMicroBatches(clips, tokenizer, random_model.config, recipe, clip_frames)
        rng = np.random.default_rng(4)
        return batches.captions(rng, [2, 0], 16) if task == "captions" else batches.dialogs(rng, [2, 0])

    batch, numbered_batch = make(features.numpy()), make(numbers)
    assert batch.features is not None
    assert numbered_batch.features is not None
    frames = numbered_batch.features[:, :, 0, 0].astype(int)  # [C, F]: numbers of the frames in their clip
    trained = logits_of(random_model, batch.tokens, torch.from_numpy(batch.features))
    for number, first_frame in enumerate(batch.tokens.frames_of_row[:, 0].tolist()):
        clip = first_frame // frames.shape[1]
        row = row_of(batch.tokens, number)
        num_prompt = int(np.argmax(row.loss_mask)) + 1
        newest = [int(frames[clip][np.flatnonzero(seen)[-1]]) for seen in row.visible]
        first = int(frames[clip][np.argmax(row.visible.any(0))])
        # Frame numbers serve as times.
        token_times = [float(newest[0] - first), *(float(n - first) for n in newest[:-1])]
        camera = SimulatedCamera(random_model, features[(2, 0)[clip]][first:], np.arange(100.0 - first))
        served = camera.served_logits(row.token_ids.tolist(), token_times, num_prompt)
        wanted = trained[number, num_prompt - 1 : len(row.token_ids) - 1]
        torch.testing.assert_close(served, wanted, atol=2e-4, rtol=1e-3)
