"""What many test files need: one real broker and one real store, each started once."""

from __future__ import annotations

from collections.abc import Iterator
from uuid import uuid4

import pytest

from services.embedded import Broker, Store, start_broker, start_store
from tests.secured_servers import SecuredServers, secured_servers


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The tests on a whole running stack come last, so that it takes no time from the others."""
    items.sort(key=lambda item: "live" in item.path.parts)


@pytest.fixture(scope="session")
def broker() -> Iterator[Broker]:
    """A real Kafka-protocol broker; `broker.bootstrap_servers`. Use topics of your own (`unique`)."""
    server = start_broker()
    yield server
    server.stop()


@pytest.fixture(scope="session")
def store_server() -> Iterator[Store]:
    """A real Redis-protocol store; `store_server.url`. Use cameras of your own (`unique`)."""
    server = start_store()
    yield server
    server.stop()


@pytest.fixture(scope="session")
def secured() -> Iterator[SecuredServers]:
    """Both again, behind TLS and with a user who may do no more than a service needs."""
    with secured_servers() as servers:
        yield servers


@pytest.fixture
def unique() -> str:
    """A name that no other test uses: for topics, groups and cameras on the shared servers."""
    return f"t{uuid4().hex[:12]}"
