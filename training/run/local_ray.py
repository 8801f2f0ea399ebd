"""Connects a run to Ray: to a given cluster, to the cluster that runs this job, or to a private Ray on this machine."""

from __future__ import annotations

import atexit
import logging
import os
import secrets
import shutil
import socket
import sys
import tempfile
from pathlib import Path

QUIET = logging.WARNING


def connect(address: str | None, *, needs_dashboard: bool) -> None:
    """Join the cluster at `address`, else the cluster that runs this job, else start a private Ray on this machine.

    No module may have imported Ray before, because Ray reads its settings from the environment when it is imported.
    """
    # `ray job submit` passes the cluster to the job only in RAY_ADDRESS.
    private = address == "local" or (address is None and "RAY_ADDRESS" not in os.environ)
    if private:
        folder = Path(tempfile.mkdtemp(prefix="sc-train-"))
        atexit.register(shutil.rmtree, folder, ignore_errors=True)  # after Ray's own shutdown
        _prepare(folder)
    import ray

    if private:
        # Ray Train reads the state of its actors from the dashboard's server.
        ray.init(
            address="local",
            include_dashboard=needs_dashboard,
            dashboard_host="127.0.0.1",
            logging_level=QUIET,
        )
    else:
        ray.init(address=address, logging_level=QUIET)


def _prepare(folder: Path) -> None:
    """Set the environment so that Ray listens only on this machine and writes nothing to the home folder."""
    if "ray" in sys.modules:
        raise AssertionError("Ray was imported before its environment was set")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    token = folder / "token"
    token.touch(mode=0o600)
    token.write_text(secrets.token_hex(32))
    os.environ.update(
        {
            "RAY_TMPDIR": str(folder),
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(token),
            # Despite its name, this makes all of Ray listen on 127.0.0.1 only.
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
            "RAY_USAGE_STATS_ENABLED": "0",
            # Without these, processes of this Ray could find another Ray on this machine.
            "RAY_GCS_SERVER_PORT": str(port),
            "RAY_ADDRESS": f"127.0.0.1:{port}",
            # Actors count as worker processes. Above the limit, Ray would end idle task processes, and new ones need
            # seconds of imports.
            "RAY_num_workers_soft_limit": "32",
            "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # saves a process; this machine is never preempted
            "RAY_worker_niceness": "0",  # Ray's default of 15 would give all other processes priority
            "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        }
    )
