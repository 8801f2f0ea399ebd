"""Runs one program and leaves no process of it behind, however it ends.

The guard adopts every descendant whose parent is gone, so when the program ends (even by SIGKILL) it finds
and ends what is left. When the guard itself is killed, the program gets SIGTERM and cleans up.
"""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from services.processes.child_processes import (
    become_subreaper,
    descendants,
    end_descendants,
    signal_all,
    spawn,
)
from services.processes.polling import wait_until

PATIENCE_S = 14.0  # of a program that was asked to end
REST_PATIENCE_S = 1.0  # of processes whose program is gone


def guard(command: Sequence[str], *, folder: Path) -> int:
    """Run `command` in `folder`; returns its exit status, 0 when SIGINT or SIGTERM asked for its end.

    A status of 128 + n tells of a program that signal n ended.
    """
    become_subreaper()
    process = spawn(command, folder=folder, death_signal=signal.SIGTERM)
    request = _EndRequest(process)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, request)
    try:
        while not wait_until(lambda: process.poll() is not None or request.made, 3600.0, every_s=0.1):
            pass
        if request.made:
            wait_until(lambda: process.poll() is not None, PATIENCE_S)
    finally:
        end_descendants(patience_s=REST_PATIENCE_S)
    status = process.wait()
    if request.made:
        return 0
    return 128 - status if status < 0 else status


class _EndRequest:
    """Passes the first SIGINT or SIGTERM on; the second ends all at once."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process = process
        self.made = False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if self.made:
            signal_all(descendants(), signal.SIGKILL)
        self.made = True
        if self.process.poll() is None:
            self.process.terminate()
