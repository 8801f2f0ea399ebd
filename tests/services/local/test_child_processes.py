"""Nothing outlives its parent: neither children nor what they left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from services.local import child_processes as children


def gone(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except FileNotFoundError:
        return True


def test_a_child_runs_the_program_itself() -> None:
    child = children.spawn([sys.executable, "-c", "import os; print(os.getpid(), os.getenv('A'))"],
                           environment={"A": "b"}, output=subprocess.PIPE)  # fmt: skip
    output, _ = child.communicate(timeout=20)
    assert output.decode().split() == [str(child.pid), "b"]
    assert child.returncode == 0


PARENT = """
from services import children
child = children.spawn(["/bin/sleep", "1000"])
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
    assert children.wait_for(lambda: gone(child), 5.0)


def test_the_stubborn_are_killed() -> None:
    program = "import signal; signal.signal(15, signal.SIG_IGN); print('on', flush=True); signal.pause()"
    child = children.spawn([sys.executable, "-c", program], stdout=subprocess.PIPE)
    assert child.stdout is not None
    child.stdout.readline()
    began = time.monotonic()
    assert children.end(child, patience_s=0.2) == -signal.SIGKILL
    assert time.monotonic() - began < 3.0
    assert children.end(child) == -signal.SIGKILL
    child.stdout.close()


TREE = """
import os, subprocess, sys, time
from services import children
children.adopt_orphans()
# A child that leaves a grandchild in a session of its own, and one that ignores SIGTERM.
stubborn = "trap : TERM; while :; do sleep 1000; done"
subprocess.run(["/bin/sh", "-c", f"setsid sleep 1000 & setsid sh -c '{stubborn}' & sleep 0.3"])
print(*children.descendants(os.getpid()), flush=True)
began = time.monotonic()
print(*children.end_descendants(patience_s=0.5), flush=True)
print(len(children.descendants(os.getpid())), time.monotonic() - began, flush=True)
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
    assert children.wait_for(lambda: len(children.descendants(child.pid)) == 1, 5.0)
    found = children.descendants(os.getpid())
    assert found.index(child.pid) < found.index(children.descendants(child.pid)[0])
    os.killpg(child.pid, signal.SIGKILL)
    child.wait()
    assert children.descendants(child.pid) == []


def test_waiting_is_bounded() -> None:
    began = time.monotonic()
    assert not children.wait_for(lambda: False, 0.1)
    assert 0.09 < time.monotonic() - began < 2.0
    assert children.wait_for(lambda: True, 0.0)
