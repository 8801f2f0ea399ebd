"""Fixtures of the services' tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.random_folder import make_random_folder
from tests.services.served_gateway import Gateway, gateway


@pytest.fixture(scope="session")
def random_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A StreamChat folder of the tiny shape with random weights and the tiny tokenizer."""
    return make_random_folder(tmp_path_factory.mktemp("random-tiny"))


@pytest.fixture(scope="module")
def served() -> Iterator[Gateway]:
    """A gateway in front of a store and a decoder in memory; everybody may ask."""
    with gateway() as served:
        yield served


@pytest.fixture(scope="module")
def http(served: Gateway) -> Iterator[httpx.Client]:
    """A client of it."""
    with httpx.Client(base_url=served.url, verify=False, timeout=10) as client:
        yield client
