"""Child processes that never outlive their parent, whatever ends it.

Linux sends a child the signal it asked for (PR_SET_PDEATHSIG) when its parent *thread* ends, so start children from a
thread that lives as long as the process does. Grandchildren are not covered by that: a process that must leave nothing
behind becomes their subreaper (`become_subreaper`) and ends what is left (`end_descendants`).
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO

import psutil

from services.processes.polling import wait_until

PR_SET_CHILD_SUBREAPER = 36

# Asks for the signal, then becomes the program. Not in `preexec_fn`, which runs Python between fork and exec and can
# deadlock when the parent has threads. The parent may have died before the request was made. Then nobody would send
# the signal, so the parent's id is checked.
_LAUNCHER = """
import ctypes, os, sys
ctypes.CDLL(None).prctl(1, int(sys.argv[2]))
if os.getppid() != int(sys.argv[1]): sys.exit(1)
os.execv(sys.argv[3], sys.argv[3:])
"""


def spawn(
    command: Sequence[str],
    *,
    environment: Mapping[str, str] | None = None,
    stdin: int | IO[bytes] = subprocess.DEVNULL,
    output: int | IO[bytes] | None = None,
    stdout: int | IO[bytes] | None = None,
    folder: Path | None = None,
    death_signal: signal.Signals = signal.SIGKILL,
) -> subprocess.Popen[bytes]:
    """Start `command` (an absolute path and its arguments), which gets `death_signal` when this thread ends.

    `environment` is the child's whole environment (None: inherited), `folder` where it runs, `stdin` what it reads.
    `output` takes what it prints, `stdout` only its standard output. It is in a group of its own: Ctrl-C in the
    terminal reaches the parent alone, which ends its children in order.
    """
    launch = [sys.executable, "-I", "-S", "-c", _LAUNCHER, str(os.getpid()), str(int(death_signal)), *command]
    return subprocess.Popen(
        launch,
        env=None if environment is None else dict(environment),
        stdin=stdin,
        stdout=output if stdout is None else stdout,
        stderr=output,
        cwd=folder,
        process_group=0,
    )


def end_process(process: subprocess.Popen[bytes], *, patience_s: float = 5.0) -> int:
    """SIGTERM, then SIGKILL after `patience_s`; returns the exit status. Fine to call twice."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(patience_s)
        except subprocess.TimeoutExpired:
            process.kill()
    return process.wait()


def is_alive(process: psutil.Process) -> bool:
    """Whether it runs. A zombie does not."""
    try:
        return process.is_running() and process.status() not in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
    except psutil.NoSuchProcess:
        return False


def name_of(process: psutil.Process) -> str:
    """The program's name; empty when the process has ended."""
    try:
        return process.name()
    except psutil.NoSuchProcess:
        return ""


def descendants(root: int | None = None) -> list[psutil.Process]:
    """All live processes below the process `root` (None: this one), parents before children."""
    try:
        return [child for child in psutil.Process(root).children(recursive=True) if is_alive(child)]
    except psutil.NoSuchProcess:
        return []


def signal_all(processes: Iterable[psutil.Process], number: signal.Signals) -> None:
    """Send a signal to each process that is still there."""
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.send_signal(number)


def become_subreaper() -> None:
    """Make this process, instead of init, the parent of descendants whose own parent ends."""
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER) was refused")


def end_descendants(*, patience_s: float) -> list[psutil.Process]:
    """End everything below this process: SIGTERM, then SIGKILL after `patience_s`; returns what was killed.

    Returns when none is left. Call `become_subreaper` early, or orphaned grandchildren are out of reach.
    """
    signal_all(descendants(), signal.SIGTERM)
    wait_until(lambda: not _reap_and_list(), patience_s)
    killed = _reap_and_list()
    while remaining := _reap_and_list():  # a process may have forked between the look and the kill
        signal_all(remaining, signal.SIGKILL)
        wait_until(lambda: not _reap_and_list(), 0.2)
    return killed


def _reap_and_list() -> list[psutil.Process]:
    with suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    return descendants()
