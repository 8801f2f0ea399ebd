"""What many test files need: one real broker and one real store, each started once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest
from xdist.remote import Producer
from xdist.scheduler.loadfile import LoadFileScheduling

from services.local.embedded_servers import Broker, Store, start_broker, start_store
from tests.secured_servers import SecuredServers, secured_servers

ORDER = ("runs", "training", "helm", "live", "services", "model", "bench")
SHARED = ("tests/runs", "tests/live")  # folders whose tests share a run, and a running stack


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes long comes first: the small files of the end fill both processes until all is done.

    The running stack lives until its process ends, so what comes after its tests should be what the other process
    makes in about the same time.
    """

    def place(item: pytest.Item) -> int:
        folder = item.path.relative_to(Path(__file__).parent).parts[0]
        return ORDER.index(folder) if folder in ORDER else 0

    items.sort(key=place)


class Together(LoadFileScheduling):
    """A file's tests stay in one process, and all those of some folders: they share what they started."""

    def _split_scope(self, nodeid: str) -> str:
        file = super()._split_scope(nodeid)
        folder = file.rpartition("/")[0]
        return folder if folder in SHARED else file


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> Together:
    """Who gives the tests to the processes of `pytest -n 2`."""
    return Together(config, log)


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
