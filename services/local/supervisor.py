"""Start the broker, the store, Ray and the app on this machine, and keep them running. `streamchat up` runs this.

A broker or store that ends is started again, empty, on the same port; the services wait for it. When one of Ray's own
processes ends, everything ends with status 1, because nothing can be served without them. Ray itself replaces
replicas. The broker never deletes old video: when its memory is full, its topics are deleted and made again. Our
publishers send their newest GOP again, so no frame is missing.
"""

from __future__ import annotations

import argparse
import os
import re
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
from services.ports.video_log import LogLost
from services.processes.child_processes import (
    become_subreaper,
    descendants,
    end_descendants,
    is_alive,
    signal_all,
)
from services.processes.polling import wait_until
from services.settings import Settings

MAX_BROKER_BYTES = 256 * 2**20  # about four minutes of eight busy cameras; then its topics are made again
RESTART_AT = 4  # times MAX_BROKER_BYTES, when that did not help
REMAKE_EVERY_S = 1.0  # so long the broker may take to free the memory
READY_TIMEOUT_S = 300.0
CHECK_EVERY_S = 0.25
KILL_AFTER_S = 11.0  # after a request to stop
MAX_RESTARTS = 5  # of one server within RESTART_WINDOW_S
RESTART_WINDOW_S = 60.0


class StopRequested(BaseException):
    """A signal asked for the end. `except Exception` does not catch it."""


class StackFailed(RuntimeError):
    """The stack cannot be kept running; the message is for the person who started it."""


class Supervisor:
    """Starts all parts, checks them, and stops them."""

    def __init__(
        self,
        settings: Settings,
        folder: Path,
        *,
        kafka_port: int = 0,
        max_broker_bytes: int = MAX_BROKER_BYTES,
    ) -> None:
        self.settings = settings
        self._folder = folder
        self._kafka_port = kafka_port
        self._max_broker_bytes = max_broker_bytes
        self._servers: list[Server] = []
        self._restarts: dict[str, list[float]] = {}
        self._remade_at = float("-inf")  # monotonic: when the broker's topics were last made again
        self.ray: Mapping[psutil.Process, str] = {}
        self._started_at = time.monotonic()

    def print_progress(self, text: str) -> None:
        """A line of progress, with the seconds since the start."""
        print(f"[{time.monotonic() - self._started_at:5.1f} s] {text}", file=sys.stderr, flush=True)

    def start(self, app: str, port: int) -> None:
        """Start everything and wait until the app is ready. Raises StackFailed, or what building the app raised."""
        self._start_servers()
        self.print_progress("starting Ray (about 20 s)")
        local_ray.prepare(self._folder, self.settings)
        self.ray = local_ray.start(self.settings)
        self.print_progress("starting the services: Gateway, LLMDecoder, VisionEncoder, FrameFifo")
        local_ray.serve(app, port)
        self.print_progress("waiting until all services answer")
        if self.settings.access == "open":
            self.print_progress("open to this machine only, without keys; --keys FILE requires keys")
        url = f"http://{HOST}:{port}/readyz"
        if not wait_until(lambda: self.check() or is_ready(url), READY_TIMEOUT_S, every_s=0.1):
            raise StackFailed(f"{url} did not answer 200 within {READY_TIMEOUT_S:.0f} s")

    def watch(self, guard_pid: int) -> None:
        """Keep everything running until the guard, our parent process, is gone. Raises StackFailed."""
        while os.getppid() == guard_pid:
            self.check()
            time.sleep(CHECK_EVERY_S)

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
            self.print_progress(
                f"Kafka-protocol broker at {broker.address}: publish with --kafka {broker.address}"
            )
        if not self.settings.redis_url:
            store = start_store()
            self._servers.append(store)
            changes["redis_url"] = store.url
            self.print_progress(f"Redis-protocol store at {store.address}")
        self.settings = self.settings.model_copy(update=changes)

    def check(self) -> bool:
        """Restart servers that have ended; StackFailed where that is impossible. Returns False, for `wait_until`."""
        for server in self._servers:
            if not server.is_alive:
                self._restart(server, f"the {server.name} ended; starting it again")
            elif server.name == "broker" and server.resident_bytes > self._max_broker_bytes:
                self._empty(server)
        for process, name in self.ray.items():
            if not is_alive(process):
                raise StackFailed(f"Ray's {name} ended: nothing can be served without it")
        return False

    def _empty(self, broker: Server) -> None:
        """Free a full broker's memory: the video first; if that is not enough, the dead letters; at last a restart."""
        from services.adapters.kafka_writer import remake_topics  # slow to import

        if broker.resident_bytes > RESTART_AT * self._max_broker_bytes:
            self._restart(broker, "the broker's memory is full of old video; starting it again, empty")
            return
        now = time.monotonic()
        if now - self._remade_at < REMAKE_EVERY_S:
            return
        video, letters = self.settings.kafka_topic_pattern, re.escape(self.settings.kafka_dead_letter_topic)
        still_full = now - self._remade_at < 2 * REMAKE_EVERY_S
        self._remade_at = now
        pattern = f"{video}|{letters}" if still_full else f"(?!{letters}$)(?:{video})"
        try:
            names = remake_topics(broker.address, pattern)
        except LogLost as error:
            self.print_progress(str(error))
        else:
            self.print_progress(f"the broker's memory is full of old video; emptied: {', '.join(names)}")

    def _restart(self, server: Server, reason: str) -> None:
        self.print_progress(reason)
        now = time.monotonic()
        recent = [at for at in self._restarts.get(server.name, []) if now - at < RESTART_WINDOW_S]
        if len(recent) >= MAX_RESTARTS:
            raise StackFailed(
                f"the {server.name} ended {len(recent) + 1} times within {RESTART_WINDOW_S:.0f} s"
            )
        self._restarts[server.name] = [*recent, now]
        server.restart()


def is_ready(url: str) -> bool:
    """Whether a GET is answered with 200."""
    try:
        with urllib.request.urlopen(url, timeout=5.0) as response:
            return response.status == 200
    except (urllib.error.URLError, OSError):
        return False


def run(supervisor: Supervisor, *, port: int, app: str, folder: Path, guard_pid: int) -> int:
    """Start, watch and stop; returns the exit status.

    `ready URL` is printed on standard output, everything else on standard error.
    """
    ready = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # Ray and its workers print on standard output
    become_subreaper()
    handle_stop_signals(folder)
    try:
        supervisor.start(app, port)
        handle_stop_signals(folder)  # Ray has installed its own handlers
        supervisor.print_progress("ready")
        print(f"ready http://{HOST}:{port}", file=ready, flush=True)
        supervisor.watch(guard_pid)
    except (StopRequested, KeyboardInterrupt, SystemExit):
        return 0
    except Exception as error:  # whatever it is, print it on one line
        supervisor.print_progress(f"{type(error).__name__}: {error}")
        return 1
    finally:
        supervisor.print_progress("stopping everything")
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        kill_all_later(folder)
        supervisor.stop()
        shutil.rmtree(folder, ignore_errors=True)
    return 0  # the guard is gone


def handle_stop_signals(folder: Path) -> None:
    """The first SIGINT or SIGTERM raises StopRequested in the main thread; everything is killed if that takes long."""
    requested = threading.Event()

    def handle(number: int, frame: FrameType | None) -> None:
        if not requested.is_set():
            requested.set()
            kill_all_later(folder)
            raise StopRequested

    signal.signal(signal.SIGINT, handle)
    signal.signal(signal.SIGTERM, handle)


def kill_all_later(folder: Path) -> None:
    """After `KILL_AFTER_S`, kill what is left and this process too, so that stopping never hangs."""

    def kill_all() -> None:
        signal_all(descendants(), signal.SIGKILL)
        shutil.rmtree(folder, ignore_errors=True)
        os._exit(1)

    timer = threading.Timer(KILL_AFTER_S, kill_all)
    timer.daemon = True
    timer.start()


def main() -> None:
    """The supervisor's own process; services/local/up.py starts it, people do not."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--app", required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--keys", default="")
    parser.add_argument("--kafka-port", type=int, default=0)
    parser.add_argument("--max-broker-bytes", type=int, default=MAX_BROKER_BYTES)
    options = parser.parse_args()
    guard_pid = os.getppid()
    access = "keys" if options.keys else "open"
    settings = Settings.from_environment(model=options.model, keys_file=options.keys, access=access)
    supervisor = Supervisor(
        settings, options.folder, kafka_port=options.kafka_port, max_broker_bytes=options.max_broker_bytes
    )
    status = run(supervisor, port=options.port, app=options.app, folder=options.folder, guard_pid=guard_pid)
    os._exit(status)  # Ray's exit hooks would wait for processes that have ended


if __name__ == "__main__":
    main()
