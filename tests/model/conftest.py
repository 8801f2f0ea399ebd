"""Fixtures of the model's tests."""

from __future__ import annotations

import pytest
import torch

from model.network.streamchat import StreamChat
from tests.model.scenes import SHAPES, make_model


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    """Many small matrices: more threads would only wait for each other."""
    torch.set_num_threads(1)


@pytest.fixture(params=sorted(SHAPES))
def model(request: pytest.FixtureRequest) -> StreamChat:
    """A random model of each shape in turn."""
    return make_model(request.param)


@pytest.fixture(scope="session")
def small() -> StreamChat:
    """One model that several tests share. No test changes it."""
    return make_model("gqa_tied")
