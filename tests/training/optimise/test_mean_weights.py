"""The mean of the weights of several models."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from model.checkpoint.folder import load_model, save_folder
from model.checkpoint.tokenizer import load_tokenizer
from model.config import StreamChatConfig
from tests.random_folder import make_random_folder
from training.optimise.mean_weights import write_mean


@pytest.fixture
def folders(tmp_path: Path) -> list[Path]:
    """Three models of one shape: random, and twice and six times as large."""
    first = make_random_folder(tmp_path / "1")
    made = [first]
    for factor in (2, 6):
        model = load_model(first)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(factor)
        save_folder(model, tmp_path / str(factor), tokenizer=first)
        made.append(tmp_path / str(factor))
    return made


def test_each_weight_is_the_mean_and_the_folder_is_complete(folders: list[Path], tmp_path: Path) -> None:
    write_mean(folders, tmp_path / "mean")
    for mean, first in zip(
        load_model(tmp_path / "mean").parameters(), load_model(folders[0]).parameters(), strict=True
    ):
        torch.testing.assert_close(mean, 3 * first)
    assert len(load_tokenizer(tmp_path / "mean")) == len(load_tokenizer(folders[0]))
    assert json.loads((tmp_path / "mean" / "mean.json").read_text())["of"] == [str(f) for f in folders]


def test_other_shapes_and_too_few_are_refused(folders: list[Path], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="wanted two or more"):
        write_mean(folders[:1], tmp_path / "mean")
    config = json.loads((folders[1] / "config.json").read_text())
    (folders[1] / "config.json").write_text(json.dumps(config | {"fifo_frames": 5}))
    assert StreamChatConfig.load(folders[1]).fifo_frames == 5
    with pytest.raises(ValueError, match="differs"):
        write_mean(folders[:2], tmp_path / "mean")
    with pytest.raises(FileNotFoundError):
        write_mean([folders[0], tmp_path / "nowhere"], tmp_path / "mean")
    assert not (tmp_path / "mean").exists()
