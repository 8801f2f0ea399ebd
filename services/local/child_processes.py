"""Child processes that never outlive their parent, whatever ends it.

Linux sends a child the signal it asked for (PR_SET_PDEATHSIG) when its parent *thread* ends, so start
children from a thread that lives as long as the process does. Grandchildren are not covered by that: a
process that must leave nothing behind makes itself their subreaper (`adopt_orphans`) and ends what is left
(`end_descendants`).
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO

PR_SET_CHILD_SUBREAPER = 36

# Asks for the signal, then becomes the program. Not in `preexec_fn`, which runs Python between fork and exec
# and can deadlock when the parent has threads. The parent may have died before the request was made: then
# nobody would send the signal, hence the look at the parent's id.
_LAUNCH = """
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

    `environment` is the child's whole environment (None: inherited), `folder` where it runs, `stdin` what it
    reads. `output` takes what it prints, `stdout` only its standard output. It is in a group of its own: Ctrl-C
    in the terminal reaches the parent alone, which ends its children in order.
    """
    launch = [sys.executable, "-I", "-S", "-c", _LAUNCH, str(os.getpid()), str(int(death_signal)), *command]
    return subprocess.Popen(
        launch,
        env=None if environment is None else dict(environment),
        stdin=stdin,
        stdout=output if stdout is None else stdout,
        stderr=output,
        cwd=folder,
        process_group=0,
    )


def name(process: int) -> str:
    """The program's name; empty when it has ended."""
    try:
        return Path(f"/proc/{process}/comm").read_text().strip()
    except OSError:
        return ""


def is_alive(process: int) -> bool:
    """Whether it runs; one that only waits to be reaped does not."""
    return _live_parent(process) is not None


def end(process: subprocess.Popen[bytes], *, patience_s: float = 5.0) -> int:
    """SIGTERM, then SIGKILL after `patience_s`; returns the exit status. Fine to call twice."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(patience_s)
        except subprocess.TimeoutExpired:
            process.kill()
    return process.wait()


def adopt_orphans() -> None:
    """Descendants whose parent ends become children of this process instead of init's."""
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER) was refused")


def descendants(root: int) -> list[int]:
    """Ids of all live processes below `root`, parents before children."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and (parent := _live_parent(int(entry.name))) is not None:
            children.setdefault(parent, []).append(int(entry.name))
    found = list(children.get(root, ()))
    for process in found:  # grows while it is walked
        found.extend(children.get(process, ()))
    return found


def end_descendants(*, patience_s: float) -> list[int]:
    """End everything below this process: SIGTERM, then SIGKILL after `patience_s`; returns what was killed.

    Returns when none is left. Call `adopt_orphans` early, or orphaned grandchildren are out of reach.
    """
    me = os.getpid()
    signal_all(descendants(me), signal.SIGTERM)
    wait_for(lambda: not _reap_and_list(me), patience_s)
    killed = _reap_and_list(me)
    while left := _reap_and_list(me):  # a process may have forked between the look and the kill
        signal_all(left, signal.SIGKILL)
        wait_for(lambda: not _reap_and_list(me), 0.2)
    return killed


def wait_for(condition: Callable[[], bool], timeout_s: float, *, every_s: float = 0.02) -> bool:
    """Ask until `condition()` holds or `timeout_s` is over; returns whether it held."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() >= deadline:
            return False
        time.sleep(every_s)
    return True


def _live_parent(process: int) -> int | None:
    """The parent's id; None for a process that is gone or only waits to be reaped."""
    try:
        # The name before it may hold spaces and brackets, so read from the last bracket on.
        state, parent = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[:2]
    except (OSError, ValueError):
        return None
    return None if state in "ZX" else int(parent)


def _reap_and_list(root: int) -> list[int]:
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass
    return descendants(root)


def signal_all(processes: Sequence[int], number: signal.Signals) -> None:
    """Send a signal to each that is still there."""
    for process in processes:
        try:
            os.kill(process, number)
        except ProcessLookupError:
            continue
