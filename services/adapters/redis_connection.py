"""Connections to Redis (or Valkey) as people run it: one server, a master that Sentinels know, or a Cluster.

    redis://host:port/db                                rediss:// for TLS
    redis+sentinel://host:port,host:port/service/db     rediss+sentinel://
    redis+cluster://host:port,host:port                 rediss+cluster://

A call takes a few seconds at most, whatever the server does. After a failover connections are dialled anew. On a
Cluster a server that hangs or is down delays the keys of the others by half a second at most, every few seconds.
"""

from __future__ import annotations

import ssl
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from redis import ConnectionPool, Redis
from redis.backoff import NoBackoff
from redis.cluster import PRIMARY, ClusterNode, NodesManager
from redis.connection import PythonRespSerializer
from redis.crc import key_slot
from redis.exceptions import (
    ClusterDownError,
    MovedError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisClusterException,
    RedisError,
)
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError
from redis.retry import Retry
from redis.sentinel import Sentinel

from services.ports.frame_store import StoreFull, StoreLost
from services.settings import RedisAddress, Settings

SOCKET_TIMEOUT_S = 2.0  # of a connection that is dialled, and of one that waits for a reply
KEYS_A_TRIP = 100  # asked about in one round trip
REST_S = 0.5  # a server that did not reply in time is left alone for this long: nobody queues up behind it
CLUSTER_TIMEOUT_S = 0.5  # the two of a Cluster, where whoever waits for one server keeps the others waiting
CLUSTER_REST_S = 2.0

# The server that was asked may be the wrong one by now, or its connection is dead: dial anew and ask once more.
STALE = (ReadOnlyError, MovedError, ClusterDownError, RedisConnectionError)

Result = TypeVar("Result")


def credentials(settings: Settings) -> dict[str, Any]:
    """The client's options for who we are, and for TLS, which checks the server's name."""
    return _credentials(
        RedisAddress.parse(settings.redis_url),
        settings.redis_username,
        settings.redis_password.get_secret_value(),
        settings.redis_ca_file,
    )


def _credentials(address: RedisAddress, username: str, password: str, ca_file: str) -> dict[str, Any]:
    who = {"username": username or address.username, "password": password or address.password}
    return {name: value for name, value in who.items() if value} | _tls(address, ca_file)


def _tls(address: RedisAddress, ca_file: str) -> dict[str, Any]:
    if not address.tls:
        return {}
    options: dict[str, Any] = {"ssl_check_hostname": True, "ssl_min_version": ssl.TLSVersion.TLSv1_2}
    return options | ({"ssl_ca_certs": ca_file} if ca_file else {})


def sentinel_credentials(settings: Settings) -> dict[str, Any]:
    """The same for the Sentinels, which have users of their own."""
    who = {
        "username": settings.redis_sentinel_username,
        "password": settings.redis_sentinel_password.get_secret_value(),
    }
    address = RedisAddress.parse(settings.redis_url)
    tls = _tls(address, settings.redis_ca_file) | ({"ssl": True} if address.tls else {})
    return {name: value for name, value in who.items() if value} | tls


class RedisConnection:
    """Calls on the server that has a key. Thread-safe. It dials with the first call."""

    def __init__(
        self,
        url: str,
        *,
        username: str = "",
        password: str = "",
        ca_file: str = "",
        sentinel_options: dict[str, Any] | None = None,
    ) -> None:
        self._address = RedisAddress.parse(url)
        self._options = _credentials(self._address, username, password, ca_file) | _limits(self.is_cluster)
        self._sentinel_options = (sentinel_options or {}) | {
            "socket_timeout": SOCKET_TIMEOUT_S / 2,
            "socket_connect_timeout": SOCKET_TIMEOUT_S / 2,
        }
        self._lock = threading.Lock()
        self._cluster: NodesManager | None = None  # a RedisCluster would wait for its first server
        self._slots_stale = False
        self._redis = None if self.is_cluster else self._one_server()
        self._resting: dict[str, float] = {}  # server -> monotonic
        self._failed = ""  # the server that was the last to be too slow

    @property
    def is_cluster(self) -> bool:
        """Whether keys lie on several servers."""
        return self._address.kind == "cluster"

    def call(self, key: str, function: Callable[[Redis], Result]) -> Result:
        """`function` of the server that has the key; raises StoreLost. It is called again after a dead connection.

        All keys that it uses must be in one slot.
        """
        with self._errors_translated():
            try:
                return self._try(key, function)
            except RedisError as error:
                # Redis ends a read that waits with UNBLOCKED when it becomes a replica.
                if not isinstance(error, STALE) and not str(error).startswith("UNBLOCKED"):
                    raise
                self.redial()
                return self._try(key, function)

    def call_each(self, function: Callable[[Redis], Result]) -> list[Result]:
        """`function` of every server that takes frames and works; raises StoreLost if none does."""
        if not self.is_cluster:
            return [self.call("", function)]
        with self._errors_translated():
            nodes: list[Any] = self._opened_cluster().get_nodes_by_server_type(PRIMARY)
        calls = [lambda node=node: self._call_node(node, function) for node in nodes]
        return list(self._of_those_that_work(calls))

    def by_server(self, keys: Iterable[str]) -> list[list[str]]:
        """The keys, those of one server together. Raises StoreLost."""
        if not self.is_cluster:
            return [list(keys)]
        groups: dict[Any, list[str]] = {}
        with self._errors_translated():
            cluster = self._opened_cluster()
            for key in keys:
                groups.setdefault(cluster.get_node_from_slot(key_slot(key.encode())), []).append(key)
        return list(groups.values())

    def ask_all(self, keys: Iterable[str], command: Callable[[Any, str], Any]) -> Iterator[tuple[str, Any]]:
        """The answer to one command for each key, in bounded round trips. "no such key" is one too, as an exception.

        The keys of a lost server are left out; StoreLost is raised if no server answers.
        """
        calls = [lambda some=some: self._ask_some(some, command) for some in self.by_server(keys)]
        for answers in self._of_those_that_work(calls):
            yield from answers

    def redial(self) -> None:
        """Let the next calls use new connections, to the server that is the right one then."""
        if self._redis is not None:
            pool: Any = self._redis.connection_pool
            pool.disconnect(inuse_connections=False)
            pool.update_active_connections_for_reconnect()
        self._slots_stale = True

    def close(self) -> None:
        """Close all connections."""
        if self._redis is not None:
            self._redis.close()
            self._redis.connection_pool.disconnect()
        if self._cluster is not None:
            self._cluster.close()

    def _ask_some(self, keys: list[str], command: Callable[[Any, str], Any]) -> list[tuple[str, Any]]:
        found: list[tuple[str, Any]] = []
        for first in range(0, len(keys), KEYS_A_TRIP):
            part = keys[first : first + KEYS_A_TRIP]
            answers = self.call(part[0], lambda redis, part=part: _ask(redis, part, command))
            found += zip(part, answers, strict=True)
        return found

    def _of_those_that_work(self, calls: Iterable[Callable[[], Result]]) -> Iterator[Result]:
        """The results of one call for each server; raises StoreLost if all are lost."""
        lost: StoreLost | None = None
        works = False
        for call in calls:
            try:
                result = call()
            except StoreLost as error:
                lost = error
                continue
            works = True
            yield result
        if lost and not works:
            raise lost

    def _try(self, key: str, function: Callable[[Redis], Result]) -> Result:
        if self._redis is not None:
            return self._try_server(self._redis, self._address.shown, function)
        node: Any = self._opened_cluster().get_node_from_slot(key_slot(key.encode()))
        return self._try_server(node.redis_connection, node.name, function)

    def _call_node(self, node: Any, function: Callable[[Redis], Result]) -> Result:
        with self._errors_translated():
            return self._try_server(node.redis_connection, node.name, function)

    def _try_server(self, redis: Redis, server: str, function: Callable[[Redis], Result]) -> Result:
        if time.monotonic() < self._resting.get(server, 0.0):
            raise StoreLost(f"the store at {server} did not reply in time")
        _pack_in_python(redis.connection_pool)
        try:
            return function(redis)
        except RedisTimeoutError:
            self._failed = server
            self._resting[server] = time.monotonic() + (CLUSTER_REST_S if self.is_cluster else REST_S)
            self.redial()
            raise

    def _opened_cluster(self) -> NodesManager:
        """The Cluster's client. Who has which slot is asked again after an error, but not all the time.

        One thread asks; the others go on with what was known before.
        """
        known = self._cluster
        if known is not None and (not self._slots_stale or not self._lock.acquire(blocking=False)):
            return known
        if known is None:
            self._lock.acquire()
        try:
            if time.monotonic() >= self._resting.get("", 0.0):
                self._resting[""] = time.monotonic() + REST_S
                self._ask_for_slots()
        finally:
            self._lock.release()
        if self._cluster is None:
            raise StoreLost(f"the store at {self._address.shown} cannot be reached")
        return self._cluster

    def _ask_for_slots(self) -> None:
        if self._cluster is None:
            self._cluster = self._new_cluster()
            self._slots_stale = False
            return
        nodes: list[Any] = list(self._cluster.nodes_cache.values())
        others = [(node.host, node.port) for node in nodes if node.name != self._failed]
        self._slots_stale = False
        try:
            self._cluster.initialize(others, last_failed_node_name=self._failed)
        except RedisError:
            self._slots_stale = True  # what was known before may still be right

    def _new_cluster(self) -> NodesManager:
        return NodesManager(
            startup_nodes=[ClusterNode(host, port) for host, port in self._address.hosts],
            dynamic_startup_nodes=False,
            require_full_coverage=False,
            ssl=self._address.tls,
            **{name: value for name, value in self._options.items() if name != "retry"},
        )

    def _one_server(self) -> Redis:
        if self._address.kind == "sentinel":
            sentinel = Sentinel(self._address.hosts, sentinel_kwargs=self._sentinel_options)
            redis: Redis = sentinel.master_for(
                self._address.service, db=self._address.db, ssl=self._address.tls, **self._options
            )
        else:
            redis = Redis(connection_pool=ConnectionPool.from_url(self._address.url, **self._options))
        _pack_in_python(redis.connection_pool)
        return redis

    @contextmanager
    def _errors_translated(self) -> Generator[None]:
        where = self._address.shown
        try:
            yield
        except OutOfMemoryError as error:
            raise StoreFull(f"the store at {where} is full and takes no frames: {error}") from error
        except ReadOnlyError as error:
            raise StoreLost(f"the store at {where} takes no frames: {error}") from error
        except StoreLost:
            raise
        except (RedisConnectionError, RedisTimeoutError, RedisClusterException, OSError) as error:
            raise StoreLost(f"the store at {where} cannot be reached: {error}") from error
        except RedisError as error:
            raise StoreLost(f"the store at {where} refuses: {error}") from error


def _ask(redis: Redis, keys: list[str], command: Callable[[Any, str], Any]) -> list[Any]:
    pipeline = new_pipeline(redis, False)
    for key in keys:
        command(pipeline, key)
    answers = pipeline.execute(raise_on_error=False)
    for answer in answers:
        if isinstance(answer, Exception) and "no such key" not in str(answer):
            raise answer
    return answers


def new_pipeline(redis: Redis, transaction: bool) -> Any:
    """A pipeline whose errors do not quote the command: that takes a second for each megabyte of a frame."""
    pipeline: Any = redis.pipeline(transaction=transaction)
    pipeline.annotate_exception = lambda *_: None
    return pipeline


def _limits(is_cluster: bool) -> dict[str, Any]:
    """No retries of the client's own: `call` knows when a second attempt makes sense."""
    timeout_s = CLUSTER_TIMEOUT_S if is_cluster else SOCKET_TIMEOUT_S
    return {
        "socket_timeout": timeout_s,
        "socket_connect_timeout": timeout_s,
        "retry": Retry(NoBackoff(), 0),
    }


def _pack_in_python(pool: Any) -> None:
    """hiredis reads large answers ten times faster than Python, but packs large writes four times slower."""
    if "command_packer" not in pool.connection_kwargs:
        pool.connection_kwargs["command_packer"] = PythonRespSerializer(6000, pool.get_encoder().encode)
