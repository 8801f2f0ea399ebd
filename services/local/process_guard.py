"""Run one program and leave no process of it behind, however it ends.

The guard becomes the parent of every descendant whose own parent is gone. So when the program ends, even by SIGKILL,
it finds and ends what is left. When the guard itself is killed, the program gets SIGTERM and cleans up.
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

PROGRAM_PATIENCE_S = 14.0  # between SIGTERM and SIGKILL
DESCENDANTS_PATIENCE_S = 1.0  # the same, for what the program left


def run_guarded(command: Sequence[str], *, folder: Path) -> int:
    """Run `command` in `folder`; returns its exit status, 0 when SIGINT or SIGTERM asked for its end.

    A status of 128 + n means that signal n ended the program.
    """
    become_subreaper()
    process = spawn(command, folder=folder, death_signal=signal.SIGTERM)
    request = _StopRequest(process)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, request)
    try:
        while not wait_until(lambda: process.poll() is not None or request.received, 3600.0, every_s=0.1):
            pass
        if request.received:
            wait_until(lambda: process.poll() is not None, PROGRAM_PATIENCE_S)
    finally:
        end_descendants(patience_s=DESCENDANTS_PATIENCE_S)
    status = process.wait()
    if request.received:
        return 0
    return 128 - status if status < 0 else status


class _StopRequest:
    """A signal handler: the first signal is passed on as SIGTERM, the second kills everything at once."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process = process
        self.received = False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if self.received:
            signal_all(descendants(), signal.SIGKILL)
        self.received = True
        if self.process.poll() is None:
            self.process.terminate()
