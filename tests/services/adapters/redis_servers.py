"""Redis as people run it, on real servers: behind an address that moves, behind Sentinels, and as a Cluster."""

from __future__ import annotations

import socket
import tempfile
import threading
from collections.abc import Generator, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from redis import Redis

from services.local.embedded_servers import HOST, Store, free_port, start_store
from services.processes.child_processes import end_process, spawn
from services.processes.polling import wait_until

NUM_SLOTS = 16384


def program_of(store: Store) -> str:
    """The path of the server's program."""
    return store.command(store.port)[0]


class MovingAddress:
    """A port that leads new connections to one server or another, as a Service of Kubernetes does.

    Connections that exist stay where they are.
    """

    def __init__(self, port: int) -> None:
        self.leads_to = port
        self._listener = socket.create_server((HOST, 0))
        self.port = int(self._listener.getsockname()[1])
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def close(self) -> None:
        """To be called when its clients are closed."""
        self._listener.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(10.0)

    def _accept(self) -> None:
        with self._listener, suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection((HOST, self.leads_to))
                self._threads.append(threading.Thread(target=self._connect, args=(client, server)))
                self._threads[-1].start()

    def _connect(self, client: socket.socket, server: socket.socket) -> None:
        with client, server:
            back = threading.Thread(target=self.forward, args=(server, client, True))
            back.start()
            self.forward(client, server, False)
            back.join()

    def forward(self, source: socket.socket, target: socket.socket, is_reply: bool) -> None:
        """Pass on what comes, until the end."""
        with suppress(OSError):
            while data := source.recv(2**16):
                target.sendall(data)
        end(source, target)


class CuttingAddress(MovingAddress):
    """A port whose connections die, once it is started, after so many more bytes of requests or of replies."""

    def __init__(self, port: int, num_bytes: int, *, replies: bool = False) -> None:
        self._num_bytes, self._replies, self._times = num_bytes, replies, 0
        super().__init__(port)

    def start(self, times: int = 10) -> None:
        """Cut the connections that are used next, so many of them."""
        self._times = times

    def forward(self, source: socket.socket, target: socket.socket, is_reply: bool) -> None:
        passed = 0
        with suppress(OSError):
            while data := source.recv(2**12):
                if self._times and is_reply == self._replies:
                    part = data[: self._num_bytes - passed]
                    target.sendall(part)
                    passed += len(part)
                    if passed >= self._num_bytes:
                        self._times -= 1
                        break
                else:
                    target.sendall(data)
        end(source, target)


def end(*sockets: socket.socket) -> None:
    """Let both ends know that a connection is over."""
    for one in sockets:
        with suppress(OSError):
            one.shutdown(socket.SHUT_RDWR)


@contextmanager
def running(program: str, *arguments: str, port: int) -> Generator[int]:
    """A server on that port; gives its process id."""
    with tempfile.TemporaryFile() as output:
        process = spawn([program, *arguments], environment={}, output=output)
        try:
            assert wait_until(lambda: _answers(port), 10.0), f"nothing on port {port}"
            yield process.pid
        finally:
            end_process(process, patience_s=0.0)


def _answers(port: int) -> bool:
    with suppress(Exception), closing(Redis(port=port)) as redis:
        return bool(redis.ping())
    return False


@dataclass(frozen=True, slots=True)
class Watched:
    """A master and its replica, watched by two Sentinels."""

    url: str
    master: Store
    replica: Store


@contextmanager
def sentinels() -> Generator[Watched]:
    """Start them. A failover takes a few seconds."""
    with ExitStack() as cleanup:
        master, replica = start_store(), start_store()
        cleanup.callback(master.stop)
        cleanup.callback(replica.stop)
        for server in (master, replica):
            with closing(Redis(port=server.port)) as redis:
                redis.config_set("repl-diskless-load", "swapdb")
                redis.config_set("repl-diskless-sync-delay", 0)
        with closing(Redis(port=replica.port)) as redis:
            redis.replicaof(HOST, master.port)
        folder = Path(cleanup.enter_context(tempfile.TemporaryDirectory()))
        ports = [free_port(), free_port()]
        for port in ports:
            config = folder / f"{port}.conf"
            config.write_text(
                f"port {port}\nbind {HOST}\nsentinel monitor frames {HOST} {master.port} 2\n"
                "sentinel down-after-milliseconds frames 1000\nsentinel failover-timeout frames 4000\n"
            )
            cleanup.enter_context(running(program_of(master), str(config), "--sentinel", port=port))

        def ready() -> bool:
            with closing(Redis(port=ports[0])) as redis:
                masters: Any = redis.sentinel_masters()
                about = masters["frames"]
                return about["num-slaves"] == 1 and about["num-other-sentinels"] == 1

        assert wait_until(ready, 20.0)
        hosts = ",".join(f"{HOST}:{port}" for port in ports)
        yield Watched(f"redis+sentinel://{hosts}/frames/0", master, replica)


@dataclass(frozen=True, slots=True)
class Cluster:
    """Three servers, each with a third of the slots."""

    url: str
    ports: list[int]
    pids: list[int]

    def clients(self) -> Iterator[Redis]:
        """One for each server."""
        for port in self.ports:
            with closing(Redis(port=port)) as redis:
                yield redis


@contextmanager
def redis_cluster() -> Generator[Cluster]:
    """Start one."""
    with ExitStack() as cleanup:
        example = start_store()
        program = program_of(example)
        example.stop()
        ports, pids = [free_port() for _ in range(3)], list[int]()
        for port in ports:
            folder = cleanup.enter_context(tempfile.TemporaryDirectory())
            options = {
                "port": port,
                "bind": HOST,
                "save": "",
                "dir": folder,
                "cluster-enabled": "yes",
                "cluster-port": free_port(),
                "cluster-require-full-coverage": "no",
                "cluster-node-timeout": 2000,
            }
            words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
            pids.append(cleanup.enter_context(running(program, *words, port=port)))
        cluster = Cluster(f"redis+cluster://{HOST}:{ports[0]},{HOST}:{ports[1]}", ports, pids)
        for number, redis in enumerate(cluster.clients()):
            slots = range(number * NUM_SLOTS // 3, (number + 1) * NUM_SLOTS // 3)
            redis.execute_command("CLUSTER ADDSLOTSRANGE", slots[0], slots[-1])
            if number:
                bus = _cluster_port(ports[0])
                redis.execute_command("CLUSTER MEET", HOST, ports[0], bus)

        def complete() -> bool:
            return all(
                b"cluster_slots_assigned:16384" in _raw_info(redis)
                and b"cluster_state:ok" in _raw_info(redis)
                for redis in cluster.clients()
            )

        assert wait_until(complete, 20.0)
        yield cluster


def _raw_info(redis: Redis) -> bytes:
    info = redis.execute_command("CLUSTER INFO")
    return info if isinstance(info, bytes) else str(info).replace("': '", ":").encode()


def _cluster_port(port: int) -> int:
    with closing(Redis(port=port)) as redis:
        found: Any = redis.config_get("cluster-port")
        return int(found["cluster-port"])
