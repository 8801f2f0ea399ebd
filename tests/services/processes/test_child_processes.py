"""Nothing outlives its parent: neither children nor what they left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil

from services.processes.child_processes import (
    descendants,
    end_process,
    spawn,
)
from services.processes.polling import wait_until


def gone(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except FileNotFoundError:
        return True


def test_a_child_runs_the_program_itself() -> None:
    child = spawn([sys.executable, "-c", "import os; print(os.getpid(), os.getenv('A'))"],
                           environment={"A": "b"}, output=subprocess.PIPE)  # fmt: skip
    output, _ = child.communicate(timeout=20)
    assert output.decode().split() == [str(child.pid), "b"]
    assert child.returncode == 0


PARENT = """
from services.processes.child_processes import spawn
child = spawn(["/bin/sleep", "1000"])
print(child.pid, flush=True)
child.wait()
"""


def test_a_child_dies_with_its_killed_parent() -> None:
    parent = subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    assert not gone(child)
    parent.kill()
    parent.wait()
    parent.stdout.close()
    assert wait_until(lambda: gone(child), 5.0)


def test_the_stubborn_are_killed() -> None:
    program = "import signal; signal.signal(15, signal.SIG_IGN); print('on', flush=True); signal.pause()"
    child = spawn([sys.executable, "-c", program], stdout=subprocess.PIPE)
    assert child.stdout is not None
    child.stdout.readline()
    began = time.monotonic()
    assert end_process(child, patience_s=0.2) == -signal.SIGKILL
    assert time.monotonic() - began < 3.0
    assert end_process(child) == -signal.SIGKILL
    child.stdout.close()


TREE = """
import subprocess, time
from services.processes.child_processes import become_subreaper, descendants, end_descendants
become_subreaper()
# A child that leaves a grandchild in a session of its own, and one that ignores SIGTERM.
stubborn = "trap : TERM; while :; do sleep 1000; done"
subprocess.run(["/bin/sh", "-c", f"setsid sleep 1000 & setsid sh -c '{stubborn}' & sleep 0.3"])
print(*(child.pid for child in descendants()), flush=True)
began = time.monotonic()
print(*(child.pid for child in end_descendants(patience_s=0.5)), flush=True)
print(len(descendants()), time.monotonic() - began, flush=True)
"""


def test_orphans_are_found_and_ended() -> None:
    done = subprocess.run(
        [sys.executable, "-c", TREE], capture_output=True, text=True, timeout=30, check=True
    )
    before, killed, after = done.stdout.splitlines()
    assert len(before.split()) >= 2
    assert 1 <= len(killed.split()) <= len(before.split())
    num_left, took_s = after.split()
    assert num_left == "0"
    assert float(took_s) < 5.0
    assert all(gone(int(process)) for process in before.split())


def test_descendants_are_listed_parents_first() -> None:
    child = subprocess.Popen(["/bin/sh", "-c", "sleep 1000 & wait"], process_group=0)
    assert wait_until(lambda: len(descendants(child.pid)) == 1, 5.0)
    found = descendants()
    assert found.index(psutil.Process(child.pid)) < found.index(descendants(child.pid)[0])
    os.killpg(child.pid, signal.SIGKILL)
    child.wait()
    assert descendants(child.pid) == []
