"""The Ray that a run uses: the cluster whose job it is, one that is named, or a private one on this machine."""

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
    """Join the cluster at `address`; without one, the cluster whose job this is, else start Ray on this machine.

    Imports Ray, which reads its settings from the environment at that moment: nothing may have imported it before.
    """
    # `ray job submit` tells the job its cluster in this way and no other.
    private = address == "local" or (address is None and "RAY_ADDRESS" not in os.environ)
    if private:
        folder = Path(tempfile.mkdtemp(prefix="sc-train-"))
        atexit.register(shutil.rmtree, folder, ignore_errors=True)  # after Ray's own end
        _prepare(folder)
    import ray

    if private:
        # Ray Train asks the dashboard's server how its actors are; nothing else needs one.
        ray.init(
            address="local",
            include_dashboard=needs_dashboard,
            dashboard_host="127.0.0.1",
            logging_level=QUIET,
        )
    else:
        ray.init(address=address, logging_level=QUIET)


def _prepare(folder: Path) -> None:
    """A Ray that nobody outside this machine reaches, and that writes nothing into the home folder."""
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
            # Despite its name the switch for "this machine alone": all of Ray listens on 127.0.0.1.
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
            "RAY_USAGE_STATS_ENABLED": "0",
            # Its processes would else look for it, and find whatever other Ray runs here.
            "RAY_GCS_SERVER_PORT": str(port),
            "RAY_ADDRESS": f"127.0.0.1:{port}",
            # Actors count among its processes; beyond the limit those that make parts would end at each pause, and then
            # begin anew with seconds of imports.
            "RAY_num_workers_soft_limit": "32",
            "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # a process more; nobody takes this machine away
            "RAY_worker_niceness": "0",  # Ray's own 15 would put training behind whatever else runs here
            "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        }
    )
