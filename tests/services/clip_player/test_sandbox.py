"""A confined process can compute and answer, and nothing else; its limits hold."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ATTEMPT = """
import ctypes, os, resource, signal, socket, subprocess, sys, threading
from services.clip_player.sandbox import confine_process
libc = ctypes.CDLL(None)
confine_process(memory_bytes=2**31, cpu_s=1.0, written_bytes=4096)
try:
    {attempt}
except BaseException as error:
    os.write(1, type(error).__name__.encode())
    os._exit(0)
os.write(1, b"done")
os._exit(0)
"""


def tried(attempt: str) -> tuple[int, str]:
    """Exit status and output of a process that confined itself and then tried this."""
    program = [sys.executable, "-c", ATTEMPT.format(attempt=attempt)]
    done = subprocess.run(program, capture_output=True, text=True, timeout=100, check=False)
    return done.returncode, done.stdout


@pytest.mark.parametrize(
    "attempt",
    [
        "open('/etc/hostname')",
        "open('/dev/null')",
        "os.listdir('.')",
        "open('written', 'w')",
        "socket.socket()",
        "socket.socketpair()",
        "subprocess.run(['/bin/true'])",
        "os.fork()",
        "os.execv('/bin/true', ['/bin/true'])",
        "os.kill(os.getppid(), signal.SIGTERM)",
        "os.unlink('nothing')",
        "os.mkdir('made')",
        "os.pipe()",
        "os.memfd_create('more')",
        "os.setuid(0)",
        "resource.setrlimit(resource.RLIMIT_AS, (-1, -1))",
        "threading.Thread(target=print).start()",
    ],
)
def test_it_can_reach_nothing(attempt: str) -> None:
    status, answer = tried(attempt)
    assert status == 0
    # Python's own names for what the kernel refuses: a higher limit, another thread.
    assert answer in ("PermissionError", "ValueError", "RuntimeError")


@pytest.mark.parametrize("number", [56, 57, 58, 101, 165, 272, 310, 425, 435])
def test_no_other_way_is_left_open(number: int) -> None:
    # clone, fork, vfork, ptrace, mount, unshare, process_vm_readv, io_uring_setup, clone3 (of x86_64)
    status, answer = tried(f"raise SystemExit if libc.syscall({number}, 0, 0, 0, 0, 0) == -1 else None")
    assert (status, answer) == (0, "SystemExit")


def test_it_can_compute_and_answer() -> None:
    assert tried("sum(range(10**6)); bytes(2**26)") == (0, "done")


def test_its_memory_is_bounded() -> None:
    assert tried("bytes(2**31)") == (0, "MemoryError")


def test_its_time_is_bounded() -> None:
    assert tried("\n    while True: pass")[0] == -signal.SIGXCPU


def test_what_it_writes_is_bounded(tmp_path: Path) -> None:
    written = tmp_path / "written"
    program = ATTEMPT.format(attempt="[os.write(1, bytes(1024)) for _ in range(100)]")
    with written.open("wb") as file:
        subprocess.run([sys.executable, "-c", program], stdout=file, timeout=100, check=False)
    assert written.stat().st_size == 4096
