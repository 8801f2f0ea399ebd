"""`streamchat up`: run everything on this machine, and leave no process when it ends."""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path

from model.config import PROJECT_ROOT, StreamChatConfig
from services.access.api_keys import read_keys
from services.local.embedded_servers import HOST, free_port, port_is_free
from services.local.process_guard import run_guarded
from services.settings import Settings

APP = "services.app:app"
SHORT_PATH = (
    "/tmp"  # not TMPDIR: a socket's path has at most 97 characters, and Ray and HAProxy need most of them
)


def up(
    settings: Settings,
    port: int,
    *,
    kafka_port: int = 0,
    app: str = APP,
    supervisor_options: tuple[str, ...] = (),
) -> int:
    """Run everything until SIGINT or SIGTERM; returns the exit status. Port 0 is a free one.

    The broker listens on `kafka_port` (0: Kafka's own 9092 if that is free, else a free one). With
    `settings.keys_file` every request needs a key; without, all programs of this machine may ask. Raises ValueError
    or FileNotFoundError for a port, model or keys file that cannot be served, before anything is started.

    For tests: `app` ("module:attribute") is served in place of StreamChat's own, and the supervisor gets
    `supervisor_options`.
    """
    _check_port("--port", port)
    _check_port("--kafka-port", kafka_port)
    model = str(Path(settings.model).resolve()) if settings.model else ""
    if model:
        StreamChatConfig.load(Path(model))
    keys = str(Path(settings.keys_file).resolve()) if settings.keys_file else ""
    if keys:
        read_keys(Path(keys))
    folder = Path(tempfile.mkdtemp(prefix="sc-", dir=SHORT_PATH))
    options = {
        "--port": port or free_port(),
        "--kafka-port": kafka_port,
        "--app": app,
        "--model": model,
        "--keys": keys,
        "--folder": folder,
    }
    arguments = [word for name, value in options.items() for word in (name, str(value))]
    try:
        return run_guarded(
            [sys.executable, "-m", "services.local.supervisor", *arguments, *supervisor_options],
            folder=PROJECT_ROOT,
        )
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _check_port(option: str, port: int) -> None:
    if not 0 <= port < 2**16:
        raise ValueError(f"{option}: got {port}, wanted 1 to 65535, or 0 for a free one")
    if port and not port_is_free(port):
        raise ValueError(f"{option}: port {port} on {HOST} is in use; choose another, or 0 for a free one")
