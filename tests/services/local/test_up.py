"""`streamchat up` with real processes: nothing is left, whichever of them is killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import grpc
import psutil
import pytest

from model.checkpoint.fingerprint import encoder_fingerprint
from model.config import SHIPPED_FOLDER
from services.adapters.redis_frame_store import RedisFrameStore
from services.local.embedded_servers import free_port, port_is_free
from services.local.supervisor import StackFailed, Supervisor
from services.processes.child_processes import descendants, is_alive, name_of, spawn
from services.processes.polling import wait_until
from services.settings import Settings

MAX_BROKER_BYTES = 80 * 2**20
PROGRAM = f"""
import sys
from services.settings import Settings
from services.local.up import up
port, kafka_port = map(int, sys.argv[1:])
sys.exit(up(Settings.from_environment(), port, kafka_port=kafka_port, app="tests.services.answering_app:app",
            supervisor_options=("--max-broker-bytes", "{MAX_BROKER_BYTES}")))
"""


@dataclass
class Up:
    """A running `up`: `guard` is the process that was started, `supervisor` its child."""

    guard: subprocess.Popen[bytes]
    port: int
    kafka_port: int

    def __post_init__(self) -> None:
        assert self.guard.stdout is not None
        assert self.guard.stdout.readline().decode() == f"ready http://127.0.0.1:{self.port}\n"
        # What `ready` means: it answers at the first try.
        self.facts: dict[str, str] = json.load(urllib.request.urlopen(f"http://127.0.0.1:{self.port}/readyz"))
        self.processes = descendants(self.guard.pid)
        self.supervisor = self.processes[0]
        self.store_port = int(self.facts["store"].rpartition(":")[2].partition("/")[0])

    def named(self, name: str) -> psutil.Process:
        return next(one for one in descendants(self.guard.pid) if name in name_of(one))

    def assert_nothing_is_left(self) -> None:
        assert [one for one in self.processes if is_alive(one)] == []
        assert all(port_is_free(port) for port in (self.port, self.kafka_port, self.store_port))
        assert self.guard.stdout is not None
        assert self.guard.stdout.read() == b""  # `ready` was all that it printed
        self.guard.stdout.close()


@pytest.fixture
def up() -> Iterator[Up]:
    port, kafka_port = free_port(), free_port()
    command = [sys.executable, "-c", PROGRAM, str(port), str(kafka_port)]
    guard = spawn(command, stdout=subprocess.PIPE, death_signal=signal.SIGTERM)
    try:
        yield Up(guard, port, kafka_port)
    finally:
        guard.terminate()
        guard.wait(30)
        assert guard.stdout is not None
        guard.stdout.close()


@pytest.mark.timeout(400)
def test_all_is_private_heals_itself_and_ends_cleanly(up: Up) -> None:
    # Ray gives no way to keep the replicas' port for one another to this machine; it asks for the private token.
    for name, port in listening_beyond_this_machine(up.processes):
        assert name.startswith("ray::ServeRepl")
        assert refuses_strangers(port)
    temporary = [Path(argument) for argument in up.supervisor.cmdline() if argument.startswith("/tmp/")]
    folders = [path for path in temporary if path.is_dir()]
    assert [oct(folder.stat().st_mode & 0o777) for folder in folders] == ["0o700"]

    store = RedisFrameStore(up.facts["store"], encoder=encoder_fingerprint(SHIPPED_FOLDER))
    up.named("valkey").kill()
    assert wait_until(lambda: responds(store), 10.0)
    store.close()
    check_that_a_full_broker_is_emptied(up)

    up.processes = descendants(up.guard.pid)
    began = time.monotonic()
    up.guard.terminate()
    assert up.guard.wait(20) == 0
    assert time.monotonic() - began < 15.0
    up.assert_nothing_is_left()
    assert not any(folder.exists() for folder in folders)


@pytest.mark.timeout(400)
def test_nothing_is_left_when_the_guard_is_killed(up: Up) -> None:
    up.guard.kill()
    up.guard.wait()
    assert wait_until(lambda: not any(map(is_alive, up.processes)), 15.0)
    up.assert_nothing_is_left()


@pytest.mark.timeout(400)
def test_nothing_is_left_when_the_supervisor_is_killed(up: Up) -> None:
    up.supervisor.kill()
    assert up.guard.wait(15) == 128 + signal.SIGKILL
    up.assert_nothing_is_left()


def test_a_taken_port_or_a_missing_model_starts_nothing(tmp_path: Path) -> None:
    taken = free_port()
    listener = subprocess.Popen([sys.executable, "-m", "http.server", "--bind", "127.0.0.1", str(taken)],
                                stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # fmt: skip
    assert wait_until(lambda: not port_is_free(taken), 10.0)
    for options, message in (
        (["--port", str(taken)], f"--port: port {taken} on 127.0.0.1 is in use"),
        (["--port", "0", "--kafka-port", str(taken)], f"--kafka-port: port {taken} on 127.0.0.1 is in use"),
        (["--port", "-1"], "--port: got -1, wanted 1 to 65535"),
        (["--port", "0", "--model", str(tmp_path)], "is no StreamChat folder: it has no config.json"),
    ):
        done = subprocess.run([sys.executable, "-m", "services.cli.main", "up", *options],
                              capture_output=True, text=True, timeout=30)  # fmt: skip
        assert (done.returncode, done.stdout) == (2, "")
        assert message in done.stderr
        assert len(done.stderr.splitlines()) == 1
    listener.kill()
    listener.wait()


def test_the_end_of_rays_own_processes_is_the_end(tmp_path: Path) -> None:
    supervisor = Supervisor(
        Settings(kafka_bootstrap_servers="127.0.0.1:1", redis_url="redis://127.0.0.1:1/0"), tmp_path
    )
    raylet = subprocess.Popen(["/bin/sleep", "1000"])
    supervisor.ray = {psutil.Process(raylet.pid): "raylet"}
    supervisor.check()
    raylet.kill()
    with pytest.raises(StackFailed, match="Ray's raylet ended"):
        wait_until(lambda: supervisor.check(), 10.0)
    raylet.wait()


def test_a_process_that_has_ended_listens_nowhere() -> None:
    ended = subprocess.Popen(["/bin/sleep", "1000"])
    process = psutil.Process(ended.pid)
    ended.kill()
    ended.wait()
    assert listening_beyond_this_machine([process]) == []


# In a process of its own: kafka-python leaves the sockets of refused connections to the garbage collector.
FLOOD = """
import sys, time
from services.adapters.kafka_writer import KafkaVideoWriter
from services.messages.video import VideoPacket
log = KafkaVideoWriter(sys.argv[1], "cameras")
packet = VideoPacket(camera="door", captured_s=time.time(), codec="h264", keyframe=True, pts=0, time_base=(1, 25),
                     seq=0, data=bytes(1_000_000))
for n in range(10_000):
    num_dropped = log.num_dropped
    log.send(packet)
    if log.flush(5.0) and log.num_dropped == num_dropped:
        print("sent", flush=True)
    time.sleep(0.05)
"""


def check_that_a_full_broker_is_emptied(up: Up) -> None:
    """While it runs, and that a publisher goes on; for readers see test_frame_fifo.py."""
    broker = up.named("tansu")
    flood = spawn([sys.executable, "-c", FLOOD, up.facts["broker"]], stdout=subprocess.PIPE)
    assert flood.stdout is not None
    try:
        most = 0

        def is_emptied() -> bool:
            nonlocal most
            most = max(most, broker.memory_info().rss)
            return most > MAX_BROKER_BYTES and broker.memory_info().rss < MAX_BROKER_BYTES / 2

        assert wait_until(is_emptied, 90.0)
        os.set_blocking(flood.stdout.fileno(), False)
        flood.stdout.read()  # what was sent before
        assert wait_until(lambda: bool(flood.stdout and flood.stdout.read()), 30.0)
        assert is_alive(broker)
    finally:
        flood.kill()
        flood.wait()
        flood.stdout.close()


def responds(store: RedisFrameStore) -> bool:
    try:
        store.ping()
    except ConnectionError:
        return False
    return True


def refuses_strangers(port: int) -> bool:
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        call = channel.unary_unary("/ray.serve.ASGIService/HandleRequest")
        with pytest.raises(grpc.RpcError) as caught:
            call(b"", timeout=10)
        return getattr(caught.value, "code")() == grpc.StatusCode.UNAUTHENTICATED  # noqa: B009


def listening_beyond_this_machine(processes: list[psutil.Process]) -> list[tuple[str, int]]:
    """Program and port of the processes' listening sockets that others could reach."""
    found: list[tuple[str, int]] = []
    for process in processes:
        with suppress(psutil.NoSuchProcess):  # it has ended meanwhile
            found += [
                (name_of(process), socket.laddr.port)
                for socket in process.net_connections("tcp")
                if socket.status == psutil.CONN_LISTEN
                and socket.laddr.ip not in ("127.0.0.1", "::ffff:127.0.0.1")
            ]
    return found
