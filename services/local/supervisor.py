"""Everything on this machine, in one process tree: broker, store, Ray, the app. `streamchat up` runs it in a guard.

While it is up: a broker or store that dies is started again, empty, on its port (the services wait that out);
when Ray's own processes die everything ends with status 1, since nothing can be served without them. Ray
itself replaces replicas. The broker forgets nothing by itself, so it is restarted before it fills the memory:
a gap of seconds.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from types import FrameType

import psutil

from services.local import local_ray
from services.local.embedded_servers import HOST, KAFKA_PORT, Server, port_is_free, start_broker, start_store
from services.processes.child_processes import (
    become_subreaper,
    descendants,
    end_descendants,
    is_alive,
    signal_all,
)
from services.processes.polling import wait_until
from services.settings import Settings

BROKER_BYTES = 2**30  # about a quarter of an hour of eight busy cameras
READY_TIMEOUT_S = 300.0
WATCH_EVERY_S = 0.25
HARD_END_S = 11.0  # after a request to end
MAX_RESTARTS = 5  # of one server within RESTART_WINDOW_S
RESTART_WINDOW_S = 60.0


class Ended(BaseException):
    """Somebody asked for the end; passes through handlers of errors."""


class Broken(RuntimeError):
    """The stack cannot go on; the message is for the person who started it."""


class Stack:
    """The parts, and what holds them up."""

    def __init__(
        self, settings: Settings, folder: Path, *, kafka_port: int = 0, broker_bytes: int = BROKER_BYTES
    ) -> None:
        self.settings = settings
        self._folder = folder
        self._kafka_port = kafka_port
        self._broker_bytes = broker_bytes
        self._servers: list[Server] = []
        self._restarts: dict[str, list[float]] = {}
        self.ray: Mapping[psutil.Process, str] = {}
        self._began = time.monotonic()

    def say(self, text: str) -> None:
        """A line of progress, with the seconds since the start."""
        print(f"[{time.monotonic() - self._began:5.1f} s] {text}", file=sys.stderr, flush=True)

    def start(self, app: str, port: int) -> None:
        """Start everything and wait until the app says that it is ready. Raises Broken, or what building raised."""
        self._start_servers()
        self.say("starting Ray (about 20 s)")
        local_ray.prepare(self._folder, self.settings)
        self.ray = local_ray.start(self.settings)
        self.say("starting the services: Gateway, LLMDecoder, VisionEncoder, FrameFifo")
        local_ray.serve(app, port)
        self.say("waiting until all of it answers")
        if self.settings.access == "open":
            self.say("open to the programs of this machine, and to nobody else; --keys FILE asks for keys")
        url = f"http://{HOST}:{port}/readyz"
        if not wait_until(lambda: self.look() or answers(url), READY_TIMEOUT_S, every_s=0.1):
            raise Broken(f"{url} did not answer 200 within {READY_TIMEOUT_S:.0f} s")

    def watch(self, guard: int) -> None:
        """Hold everything up until the process `guard`, our parent, is gone; raises Broken."""
        while os.getppid() == guard:
            self.look()
            time.sleep(WATCH_EVERY_S)

    def stop(self) -> None:
        """End everything that was started."""
        if "ray" in sys.modules:
            local_ray.stop()
        for server in self._servers:
            server.stop()
        end_descendants(patience_s=2.0)

    def _start_servers(self) -> None:
        changes: dict[str, str] = {}
        if not self.settings.kafka_bootstrap_servers:
            broker = start_broker(self._kafka_port or (KAFKA_PORT if port_is_free(KAFKA_PORT) else 0))
            self._servers.append(broker)
            changes["kafka_bootstrap_servers"] = broker.bootstrap_servers
            self.say(f"Kafka-protocol broker at {broker.address}: publish with --kafka {broker.address}")
        if not self.settings.redis_url:
            store = start_store()
            self._servers.append(store)
            changes["redis_url"] = store.url
            self.say(f"Redis-protocol store at {store.address}")
        self.settings = self.settings.model_copy(update=changes)

    def look(self) -> bool:
        """Start what has ended again; raises Broken where that is impossible. False, for `wait_for`."""
        for server in self._servers:
            if not server.alive:
                self._restart(server, f"the {server.name} ended; starting it again")
            elif server.name == "broker" and server.resident_bytes > self._broker_bytes:
                self._restart(server, "the broker's memory is full of old video; starting it afresh")
        for process, name in self.ray.items():
            if not is_alive(process):
                raise Broken(f"Ray's {name} ended: nothing can be served without it")
        return False

    def _restart(self, server: Server, why: str) -> None:
        self.say(why)
        now = time.monotonic()
        recent = [then for then in self._restarts.get(server.name, []) if now - then < RESTART_WINDOW_S]
        if len(recent) >= MAX_RESTARTS:
            raise Broken(f"the {server.name} ended {len(recent) + 1} times within {RESTART_WINDOW_S:.0f} s")
        self._restarts[server.name] = [*recent, now]
        server.restart()


def answers(url: str) -> bool:
    """Whether a GET is answered with 200."""
    try:
        with urllib.request.urlopen(url, timeout=5.0) as answer:
            return answer.status == 200
    except (urllib.error.URLError, OSError):
        return False


def run(stack: Stack, *, port: int, app: str, folder: Path, guard: int) -> int:
    """The life of a stack; prints `ready URL` on standard output, everything else on standard error."""
    ready = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # Ray and its workers print on standard output
    become_subreaper()
    end_on_request(folder)
    try:
        stack.start(app, port)
        end_on_request(folder)  # Ray has put its own handler in place
        stack.say("ready")
        print(f"ready http://{HOST}:{port}", file=ready, flush=True)
        stack.watch(guard)
    except (Ended, KeyboardInterrupt, SystemExit):
        return 0
    except Exception as error:  # whatever it is, it is the end of the stack, and the person wants to know
        stack.say(f"{type(error).__name__}: {error}")
        return 1
    finally:
        stack.say("ending everything")
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        give_up_later(folder)
        stack.stop()
        shutil.rmtree(folder, ignore_errors=True)
    return 0  # the guard is gone


def end_on_request(folder: Path) -> None:
    """SIGINT and SIGTERM raise Ended in the main thread once, and end everything by force if that takes long."""
    asked = threading.Event()

    def handle(number: int, frame: FrameType | None) -> None:
        if not asked.is_set():
            asked.set()
            give_up_later(folder)
            raise Ended

    signal.signal(signal.SIGINT, handle)
    signal.signal(signal.SIGTERM, handle)


def give_up_later(folder: Path) -> None:
    """After `HARD_END_S`, kill what is left and this process too: an end must not hang."""

    def give_up() -> None:
        signal_all(descendants(), signal.SIGKILL)
        shutil.rmtree(folder, ignore_errors=True)
        os._exit(1)

    timer = threading.Timer(HARD_END_S, give_up)
    timer.daemon = True
    timer.start()


def main() -> None:
    """The stack's own process; started by services/local/up.py, not by people."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--app", required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--keys", default="")
    parser.add_argument("--kafka-port", type=int, default=0)
    parser.add_argument("--broker-bytes", type=int, default=BROKER_BYTES)
    options = parser.parse_args()
    guard = os.getppid()
    access = "keys" if options.keys else "open"
    settings = Settings.from_environment(model=options.model, keys_file=options.keys, access=access)
    stack = Stack(settings, options.folder, kafka_port=options.kafka_port, broker_bytes=options.broker_bytes)
    status = run(stack, port=options.port, app=options.app, folder=options.folder, guard=guard)
    os._exit(status)  # Ray's exit hooks would wait for what has ended


if __name__ == "__main__":
    main()
