"""Pretraining the vision encoder."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from model.config import preset
from model.network.vision import VisionTower
from training.live_world.clips import Clip
from training.live_world.pretrain_vision import (
    NUM_CLASSES,
    PlaceClassifier,
    accuracies,
    augment,
    main,
    train,
    with_place_numbers,
)

pytestmark = pytest.mark.slow


def test_a_few_steps_teach_something_and_leave_an_encoder(clips: list[Clip], tmp_path: Path) -> None:
    train(clips, clips, minutes=1.0, batch_size=16, peak_lr=1e-3, out=tmp_path, report_every=4, steps=21)
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [r["step"] for r in rows] == [0, 4, 8, 12, 16, 20]
    assert min(r["loss"] for r in rows) < 0.9 * rows[0]["loss"]
    assert all(0.0 <= rows[-1][name] <= 1.0 for name in ("thing", "colour", "happening", "place", "presence"))
    tower = VisionTower(preset("tiny").vision)
    tower.load_state_dict(load_file(tmp_path / "vision.safetensors"))
    assert tower(torch.zeros(1, 96, 96, 3, dtype=torch.uint8)).shape == (1, 9, 160)


def test_the_heads_name_thing_colour_happening_and_place() -> None:
    config = preset("tiny").vision
    logits = PlaceClassifier(VisionTower(config), config.hidden_size)(
        torch.zeros(2, 96, 96, 3, dtype=torch.uint8)
    )
    assert [tuple(x.shape) for x in logits] == [(2, 9, num) for num in NUM_CLASSES]


def test_shares_count_only_places_where_a_thing_stands() -> None:
    classes = np.zeros((1, 9, 3), dtype=np.int8)
    classes[0, 0], classes[0, 1] = (3, 2, 1), (4, 5, 0)
    truth = with_place_numbers(classes)
    assert truth[0, :, 3].tolist() == list(range(9))
    said = truth.clone()
    said[0, 1, 1] = 1  # one colour of two is wrong
    said[0, 2, 0] = 7  # a thing where none is
    logits = [torch.nn.functional.one_hot(said[..., i], num).float() for i, num in enumerate(NUM_CLASSES)]
    shares = accuracies(logits, truth)
    assert shares == pytest.approx(
        {"thing": 1.0, "colour": 0.5, "happening": 1.0, "place": 1.0, "presence": 8 / 9}
    )


def test_augmented_pictures_are_pictures_of_the_same() -> None:
    pictures = np.random.default_rng(0).integers(0, 256, size=(4, 96, 96, 3), dtype=np.uint8)
    changed = augment(pictures, np.random.default_rng(1))
    assert (changed.shape, changed.dtype) == ((4, 96, 96, 3), torch.uint8)
    assert not np.array_equal(changed.numpy(), pictures)
    assert abs(float(changed.float().mean()) - float(pictures.mean())) < 20


def test_held_out_clips_and_none_are_refused(
    held_out: list[Clip], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for folder, said in (
        (held_out[0].path.parent, "seeds from 1000000 on are held out for tests"),
        (tmp_path, "holds no live-world clips"),
    ):
        command = ["--clips", str(folder), "--held-out", str(folder), "--out", str(tmp_path / "out")]
        monkeypatch.setattr(sys, "argv", ["pretrain_vision.py", *command])
        with pytest.raises(SystemExit):
            main()
        assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
