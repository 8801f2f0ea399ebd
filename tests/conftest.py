"""Fixtures for many test files: one real broker and one real store, and the order of the tests."""

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
SHARED_FOLDERS = ("tests/runs", "tests/live")  # their tests share a training run, and a running stack
# `make check` leaves out tests with the marker `slow`. These folders and fixtures get it here, other files set it.
SLOW_FOLDERS = ("bench", "helm", "live", "runs", "services/local", "services/page", "services/processes")
SLOW_FIXTURES = {"broker", "cluster", "secured", "store_server", "watched"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark slow tests, and run the long ones first: short ones at the end keep both processes busy.

    The running stack lives until its process ends. Its tests come before others that take about as long.
    """

    def folder(item: pytest.Item) -> str:
        return item.path.relative_to(Path(__file__).parent).parts[0]

    slow = [Path(__file__).parent / name for name in SLOW_FOLDERS]
    for item in items:
        fixtures: set[str] = set(getattr(item, "fixturenames", ()))
        if fixtures & SLOW_FIXTURES or any(item.path.is_relative_to(path) for path in slow):
            item.add_marker("slow")
    items.sort(key=lambda item: ORDER.index(folder(item)) if folder(item) in ORDER else 0)


class SharedFolderScheduling(LoadFileScheduling):
    """The tests of a file run in one process, and so do all tests of the shared folders: they share what they start."""

    def _split_scope(self, nodeid: str) -> str:
        file = super()._split_scope(nodeid)
        folder = file.rpartition("/")[0]
        return folder if folder in SHARED_FOLDERS else file


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> SharedFolderScheduling:
    """The scheduler of `pytest -n 2`."""
    return SharedFolderScheduling(config, log)


@pytest.fixture(scope="session")
def broker() -> Iterator[Broker]:
    """A real Kafka-protocol broker at `broker.bootstrap_servers`. Use topics of your own (`unique`)."""
    server = start_broker()
    yield server
    server.stop()


@pytest.fixture(scope="session")
def store_server() -> Iterator[Store]:
    """A real Redis-protocol store at `store_server.url`. Use cameras of your own (`unique`)."""
    server = start_store()
    yield server
    server.stop()


@pytest.fixture(scope="session")
def secured() -> Iterator[SecuredServers]:
    """Another broker and store, behind TLS, with a user that may do only what a service needs."""
    with secured_servers() as servers:
        yield servers


@pytest.fixture
def unique() -> str:
    """A name that no other test uses: for topics, groups and cameras on the shared servers."""
    return f"t{uuid4().hex[:12]}"
