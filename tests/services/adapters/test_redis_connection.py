"""What happens to calls when the server moves, hangs or comes back; on real servers."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import closing

import pytest
from redis import Redis

from services.adapters import redis_connection
from services.adapters.redis_connection import RedisConnection
from services.adapters.redis_frame_store import RedisFrameStore
from services.local.embedded_servers import HOST, Store, start_store
from services.ports.frame_store import StoreLost
from services.processes.polling import wait_until
from tests.services.adapters.redis_servers import MovingAddress
from tests.services.adapters.test_redis_frame_store import frame


@pytest.fixture
def pair() -> Iterator[tuple[Store, Store]]:
    servers = start_store(), start_store()
    yield servers
    for server in servers:
        server.stop()


def test_a_master_that_became_a_replica_is_left(pair: tuple[Store, Store], unique: str) -> None:
    old, new = pair
    address = MovingAddress(old.port)
    with closing(address), closing(RedisFrameStore(f"redis://{HOST}:{address.port}/0")) as frames:
        assert frames.append(frame(unique, 1), capacity=4)
        reader = threading.Thread(target=lambda: frames.newer({unique: "9999-0"}, block_s=2.0))
        reader.start()  # a connection in use
        with closing(Redis(port=old.port)) as redis, closing(Redis(port=new.port)) as master:
            master.config_set("repl-diskless-sync-delay", 0)
            redis.config_set("repl-diskless-load", "swapdb")  # a dump.rdb would be left behind
            redis.replicaof(HOST, new.port)
            assert wait_until(lambda: redis.info("replication")["master_link_status"] == "up", 10.0)
        address.leads_to = new.port
        began = time.monotonic()
        assert frames.append(frame(unique, 2), capacity=4)  # not even this frame is lost
        assert time.monotonic() - began < 2.0
        reader.join()
        assert [one.frame_id for one in frames.newest(unique, 4)] == ["1002-0"]


def test_a_replica_without_a_new_master_is_named(pair: tuple[Store, Store], unique: str) -> None:
    old, new = pair
    with closing(Redis(port=old.port)) as redis, closing(RedisFrameStore(old.url)) as frames:
        redis.config_set("repl-diskless-load", "swapdb")
        redis.replicaof(HOST, new.port)
        with pytest.raises(StoreLost, match=r"takes no frames: .*read only replica"):
            frames.append(frame(unique, 1), capacity=4)
        redis.replicaof("NO", "ONE")
        assert frames.append(frame(unique, 1), capacity=4)


def test_nobody_queues_up_behind_a_server_that_hangs(
    pair: tuple[Store, Store], unique: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_connection, "SOCKET_TIMEOUT_S", 0.3)
    with closing(RedisFrameStore(pair[0].url)) as frames:
        frames.append(frame(unique, 1), capacity=4)
        os.kill(pair[0].process.pid, signal.SIGSTOP)
        calls = (
            lambda: frames.append(frame(unique, 2), capacity=4),
            lambda: frames.newest(unique, 1),
            lambda: frames.newer({unique: "0-0"}, block_s=0.1),
            lambda: frames.picture(unique, "1001-0"),
            lambda: frames.camera(unique),
            frames.cameras,
            frames.memory,
            frames.ping,
        )
        began = time.monotonic()
        for call in calls:
            with pytest.raises(StoreLost):
                call()
        assert time.monotonic() - began < 1.5  # one waits for the time limit, the others learn from it
        os.kill(pair[0].process.pid, signal.SIGCONT)
        assert wait_until(lambda: _works(frames, unique), 5.0)


def _works(frames: RedisFrameStore, camera: str) -> bool:
    try:
        return frames.newest(camera, 1) != []
    except StoreLost:
        return False


def test_an_error_of_the_server_is_a_lost_store(pair: tuple[Store, Store]) -> None:
    # Whoever reads in a thread of its own waits for a lost store, and would end with any other error.
    with closing(Redis(port=pair[0].port)) as redis, closing(RedisConnection(pair[0].url)) as connection:
        redis.set("text", "no stream")
        with pytest.raises(StoreLost, match="refuses: WRONGTYPE"):
            connection.call("text", lambda redis: redis.xlen("text"))


@pytest.mark.parametrize(
    ("url", "kind", "hosts", "service", "db"),
    [
        ("redis://store:6380/2", "", (("store", 6380),), "", 2),
        ("redis+sentinel://one,two:7000/frames/1", "sentinel", (("one", 26379), ("two", 7000)), "frames", 1),
        ("rediss+cluster://a:1,[::1]:2", "cluster", (("a", 1), ("::1", 2)), "", 0),
    ],
)
def test_addresses(url: str, kind: str, hosts: tuple[tuple[str, int], ...], service: str, db: int) -> None:
    address = redis_connection.RedisAddress.parse(url)
    assert (address.kind, address.hosts, address.service, address.db) == (kind, hosts, service, db)
    assert address.tls == url.startswith("rediss")


@pytest.mark.parametrize(
    ("url", "wanted"),
    [
        ("http://store", "got http, wanted one that begins with redis://"),
        ("store:6379", "got an address without ://"),
        ("redis+sentinel://one:1", "without a master's name"),
        ("redis+cluster://one:1/3", "wanted none on a Cluster"),
        ("redis+cluster://", "got no host"),
        ("redis://store:port/0", "wanted host:port"),
        ("redis://store/frames", "wanted a number"),
    ],
)
def test_a_wrong_address_is_named(url: str, wanted: str) -> None:
    with pytest.raises(ValueError, match=wanted):
        redis_connection.RedisAddress.parse(url)
