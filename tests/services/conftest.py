"""Fixtures of the services' tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.random_folder import make_random_folder


@pytest.fixture(scope="session")
def random_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A StreamChat folder of the tiny shape with random weights and the tiny tokenizer."""
    return make_random_folder(tmp_path_factory.mktemp("random-tiny"))
