"""What many test files need: one real broker and one real store, each started once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from services.embedded import Broker, Store, start_broker, start_store
from tests.secured_servers import SecuredServers, secured_servers

ORDER = ("training", "services", "model", "helm", "bench", "live")


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist looks at the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A file's tests stay in one process, and those on a whole running stack: they share what they started.

    The longest come first, and that stack last, so that it takes no time from the others.
    """

    def folder(item: pytest.Item) -> str:
        return item.path.relative_to(Path(__file__).parent).parts[0]

    items.sort(key=lambda item: ORDER.index(folder(item)) if folder(item) in ORDER else 0)
    for item in items:
        item.add_marker(pytest.mark.xdist_group("live" if folder(item) == "live" else str(item.path)))


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
