"""The frame store and the rate limits on a Cluster of three real servers, and behind Sentinels."""

from __future__ import annotations

import itertools
import os
import signal
import time
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager

import pytest
from limits import RateLimitItemPerMinute
from redis import Redis, RedisCluster

from services.adapters.redis_frame_store import RedisFrameStore
from services.ports.frame_store import StoreLost
from services.processes.polling import wait_until
from tests.services.adapters.redis_servers import Cluster, Watched, redis_cluster, sentinels
from tests.services.adapters.test_rate_limit_store import limiter
from tests.services.adapters.test_redis_frame_store import frame, key_of, tokens_of

pytestmark = pytest.mark.slow
WITHIN_S = 1.0


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


def test_keys_on_all_servers_expire(cluster: Cluster, unique: str) -> None:
    cameras = cameras_by_server(cluster, unique)
    with closing(RedisFrameStore(cluster.url)) as store:
        for camera in cameras:
            assert store.append(frame(camera, 1), capacity=4, keep_s=0.2)
        store.announce(cameras, 0.2)
        assert store.is_announced(cameras[0])
        assert wait_until(lambda: not any(store.is_announced(camera) for camera in cameras), 5.0)
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
    entries: list[tuple[bytes, object]] = redis.xrevrange(key_of(camera, "frames"), count=1)
    return bool(entries) and entries[0][0] > b"1001-0" and redis.info("replication")["role"] == "master"
