"""Fixtures of the services' tests."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from model.config import preset
from model.folder import save_folder
from model.network import StreamChat
from training.tiny_tokenizer import make_tokenizer


@pytest.fixture(scope="session")
def random_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A StreamChat folder of the tiny shape with random weights and the tiny tokenizer."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("random-tiny")
    tokenizer = make_tokenizer(folder)
    save_folder(StreamChat(preset("tiny", vocab_size=len(tokenizer))), folder)
    return folder
