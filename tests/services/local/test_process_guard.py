"""A guarded program ends whole, however it ends."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import psutil
import pytest

from services.processes.child_processes import descendants, is_alive
from services.processes.polling import wait_until

# Makes a grandchild in a session of its own, whose parent ends at once, and says who that is.
PROGRAM = """
import signal, subprocess, sys, time
leave = "setsid sleep 1000 > /dev/null 2>&1 & echo $!"
print(subprocess.run(["/bin/sh", "-c", leave], stdout=subprocess.PIPE, text=True).stdout.strip(), flush=True)
{then}
"""
GUARD = (
    "import sys, pathlib; from services.local.process_guard import run_guarded; "
    "sys.exit(run_guarded(sys.argv[1:], folder=pathlib.Path('/')))"
)


class Guarded:
    """A guard with its program, and what the program left."""

    def __init__(self, then: str) -> None:
        command = [sys.executable, "-c", GUARD, sys.executable, "-c", PROGRAM.format(then=then)]
        self.guard = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self.guard.stdout is not None
        self.sleeper = psutil.Process(int(self.guard.stdout.readline()))

    def end(self) -> None:
        self.guard.kill()
        self.guard.wait()
        assert self.guard.stdout is not None
        self.guard.stdout.close()
        assert wait_until(lambda: not is_alive(self.sleeper), 5.0)


@pytest.fixture
def guarded(request: pytest.FixtureRequest) -> Iterator[Guarded]:
    one = Guarded(request.param)
    yield one
    one.end()


@pytest.mark.parametrize("guarded", ["sys.exit(7)"], indirect=True)
def test_a_programs_status_is_the_guards(guarded: Guarded) -> None:
    assert guarded.guard.wait(10) == 7
    assert not is_alive(guarded.sleeper)


@pytest.mark.parametrize("guarded", ["signal.raise_signal(signal.SIGKILL)"], indirect=True)
def test_a_killed_program_is_told_by_the_status(guarded: Guarded) -> None:
    assert guarded.guard.wait(10) == 128 + signal.SIGKILL
    assert not is_alive(guarded.sleeper)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("guarded", ["time.sleep(1000)"], indirect=True)
def test_a_request_to_end_is_passed_on(guarded: Guarded, number: signal.Signals) -> None:
    guarded.guard.send_signal(number)
    assert guarded.guard.wait(10) == 0
    assert not is_alive(guarded.sleeper)


STUBBORN = "signal.signal(signal.SIGTERM, signal.SIG_IGN); print('on', flush=True); time.sleep(1000)"


@pytest.mark.parametrize("guarded", [STUBBORN], indirect=True)
def test_a_second_request_ends_the_stubborn_at_once(guarded: Guarded) -> None:
    assert guarded.guard.stdout is not None
    assert guarded.guard.stdout.readline() == "on\n"
    began = time.monotonic()
    guarded.guard.terminate()
    assert not wait_until(lambda: guarded.guard.poll() is not None, 0.3)
    guarded.guard.terminate()
    assert guarded.guard.wait(10) == 0
    assert time.monotonic() - began < 5.0
    assert not is_alive(guarded.sleeper)


@pytest.mark.parametrize("guarded", ["time.sleep(1000)"], indirect=True)
def test_a_program_is_asked_to_end_when_its_guard_is_killed(guarded: Guarded) -> None:
    (program,) = [one for one in descendants(guarded.guard.pid) if one != guarded.sleeper]
    guarded.guard.kill()
    assert wait_until(lambda: not is_alive(program), 5.0)
    # What a killed guard leaves is its program's to clean up; this one does not.
    guarded.sleeper.kill()
