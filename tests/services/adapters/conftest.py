"""Fixtures of the adapters' tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from services.local.embedded_servers import Broker, start_broker


@pytest.fixture
def own_broker() -> Iterator[Broker]:
    """A broker that a test may stop."""
    server = start_broker()
    yield server
    server.stop()
