"""A gateway that needs keys, for each test file of the access rules."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest

from services.settings import Settings
from tests.services.access.keyed_gateway import Keys
from tests.services.served_gateway import Gateway, frame, gateway


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Keys:
    return Keys(tmp_path_factory.mktemp("keys") / "keys.json")


@pytest.fixture(scope="module")
def served(keys: Keys) -> Iterator[Gateway]:
    settings = Settings(
        keys_file=str(keys.path), origins_allowed="https://desk.example, https://other.example"
    )
    with gateway(settings) as served:
        served.store.append(frame("yard-2", 1), capacity=4)
        yield served


@pytest.fixture(scope="module")
def http(served: Gateway) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=served.url, timeout=10, trust_env=False) as client:
        yield client
