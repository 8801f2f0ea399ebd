"""What happens to calls when the server moves, hangs or comes back; on real servers, Sentinels and a Cluster."""

from __future__ import annotations

import itertools
import os
import signal
import threading
import time
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager
from typing import Any

import pytest
from limits import RateLimitItemPerMinute
from redis import Redis, RedisCluster

from services.adapters import redis_connection
from services.adapters.redis_connection import RedisConnection
from services.adapters.redis_frame_store import RedisFrameStore
from services.local.embedded_servers import HOST, Store, start_store
from services.messages.video import CameraNote
from services.ports.frame_store import StoreLost
from services.processes.polling import wait_until
from tests.services.adapters.redis_servers import Cluster, MovingAddress, Watched, redis_cluster, sentinels
from tests.services.adapters.test_rate_limit_store import limiter
from tests.services.adapters.test_redis_frame_store import frame, key_of, tokens_of

WITHIN_S = 1.0  # a camera goes on while the server of another hangs


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


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with redis_cluster() as servers:
        yield servers


@pytest.fixture(scope="module")
def watched() -> Iterator[Watched]:
    with sentinels() as servers:
        yield servers


def cameras_by_server(cluster: Cluster, unique: str) -> list[str]:
    """One camera for each server, in the order of the ports."""
    found: dict[int, str] = {}
    with closing(RedisCluster(port=cluster.ports[0], host="127.0.0.1")) as client:
        for number in range(500):
            camera = f"{unique}-{number}"
            node = client.get_node_from_key(key_of(camera, "frames"))
            assert node is not None
            found.setdefault(int(node.port), camera)
    return [found[port] for port in cluster.ports]


@contextmanager
def hanging(pid: int) -> Generator[None]:
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def is_stored(store: RedisFrameStore, camera: str, n: int) -> bool:
    try:
        return store.append(frame(camera, n), capacity=4)
    except StoreLost:
        return False


def test_frames_are_kept_on_all_servers(cluster: Cluster, unique: str) -> None:
    cameras = cameras_by_server(cluster, unique)
    with closing(RedisFrameStore(cluster.url)) as store:
        sent = [frame(camera, n) for camera in cameras for n in range(3)]
        for one in sent:
            assert store.append(one, capacity=2)
        assert not store.append(sent[-1], capacity=2)  # a replay
        for camera in cameras:
            newest = [one for one in sent if one.camera == camera][-2:]
            assert store.newest(camera, 4) == tokens_of(newest)
        after = dict.fromkeys(cameras, "1001-0")
        assert {one.camera for one in store.newer(after, block_s=1.0)} == set(cameras)
        assert {state.camera for state in store.cameras()} >= set(cameras)
        assert store.memory()[0] > 0


def test_cameras_of_all_servers_belong_to_their_topics(cluster: Cluster, unique: str) -> None:
    cameras = cameras_by_server(cluster, unique)
    own, theirs = dict.fromkeys(cameras, "cameras"), dict.fromkeys(cameras, "garden")
    with closing(RedisFrameStore(cluster.url)) as store, closing(RedisFrameStore(cluster.url)) as other:
        assert store.bind(own, 60.0) == own
        assert other.bind(theirs, 60.0) == own
        assert store.bind(own, 0.2) == own
        assert wait_until(lambda: other.bind(theirs, 60.0) == theirs, 5.0)


def test_keys_on_all_servers_expire(cluster: Cluster, unique: str) -> None:
    cameras = cameras_by_server(cluster, unique)
    with closing(RedisFrameStore(cluster.url)) as store:
        for camera in cameras:
            assert store.append(frame(camera, 1), capacity=4, keep_s=0.2)
        store.announce(dict.fromkeys(cameras, CameraNote()), 0.2)
        assert set(cameras) <= set(store.notes())
        assert wait_until(lambda: not set(cameras) & set(store.notes()), 5.0)
        assert wait_until(lambda: store.cameras(cameras) == [], 5.0)
        assert not set(cameras) & {state.camera for state in store.cameras()}
        for redis in cluster.clients():  # the lists forget them too
            listed = [name for key in redis.scan_iter("*:cameras") for name in redis.zrange(key, 0, -1)]
            assert not {camera.encode() for camera in cameras} & set(listed)


@pytest.mark.parametrize("number", [0, 1, 2])
def test_a_server_that_hangs_stops_no_other_camera(cluster: Cluster, unique: str, number: int) -> None:
    cameras = cameras_by_server(cluster, unique)
    away = cameras[number]
    others = [camera for camera in cameras if camera != away]
    with closing(RedisFrameStore(cluster.url)) as store:
        for camera in cameras:
            assert store.append(frame(camera, 0), capacity=4)
        with hanging(cluster.pids[number]):
            for n in range(1, 8):  # one thread writes all cameras in turn, as a FrameFifo does
                began = time.monotonic()
                assert not is_stored(store, away, n)
                assert all(is_stored(store, camera, n) for camera in others)
                read = store.newer({away: "0-0"} | dict.fromkeys(others, f"{999 + n}-0"), block_s=0.1)
                assert {one.camera for one in read} == set(others)
                assert {state.camera for state in store.cameras()} >= set(others)
                assert time.monotonic() - began < WITHIN_S
                store.ping()
            with pytest.raises(StoreLost):
                store.newest(away, 1)
        assert wait_until(lambda: is_stored(store, away, 9), 10.0)


def test_a_store_can_be_opened_while_a_server_hangs(cluster: Cluster, unique: str) -> None:
    cameras = cameras_by_server(cluster, unique)
    with hanging(cluster.pids[0]), closing(RedisFrameStore(cluster.url)) as store:
        began = time.monotonic()
        assert wait_until(lambda: is_stored(store, cameras[1], 1), 5.0)
        assert time.monotonic() - began < 2 * WITHIN_S


async def test_gateways_share_one_count_on_a_cluster(cluster: Cluster, unique: str) -> None:
    await count_in_two_gateways(cluster.url, unique)


async def test_gateways_share_one_count_behind_sentinels(watched: Watched, unique: str) -> None:
    await count_in_two_gateways(watched.url, unique)
    with closing(Redis(port=watched.master.port)) as redis:
        assert redis.keys(f"streamchat:rate-limit:*{unique}*")


async def count_in_two_gateways(url: str, unique: str) -> None:
    limit = RateLimitItemPerMinute(4)
    async with limiter(redis_url=url) as one, limiter(redis_url=url) as other:
        admitted = [await each.hit(limit, unique) for each in (one, other, one, other, one)]
        assert admitted == [True, True, True, True, False]
        assert (await other.get_window_stats(limit, unique)).remaining == 0


def test_writes_go_to_the_master_that_the_sentinels_name(watched: Watched, unique: str) -> None:
    with closing(RedisFrameStore(watched.url)) as store:
        assert store.append(frame(unique, 1), capacity=4)
        watched.master.stop()
        with closing(Redis(port=watched.replica.port)) as new:
            numbers = itertools.count(2)
            assert wait_until(
                lambda: is_stored(store, unique, next(numbers)) and _has_frame(new, unique), 10.0
            )


def _has_frame(redis: Redis, camera: str) -> bool:
    """Whether it was written there: a replica gets the first frame, 1001-0, from its master."""
    entries: Any = redis.xrevrange(key_of(camera, "frames"), count=1)
    return bool(entries) and entries[0][0] > b"1001-0" and redis.info("replication")["role"] == "master"
