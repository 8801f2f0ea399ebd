"""A `streamchat` command running beside us: its progress is shown, its last words are kept, it ends with us."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections import deque

from model.config import PROJECT_ROOT
from services.processes.child_processes import end_process, spawn

LAST_LINES = 12
END_PATIENCE_S = 20.0  # of `up`, which has much to end


class Died(RuntimeError):
    """A command ended by itself; the message has its last words."""


class Background:
    """Started when made, from a thread that lives as long as it is to live; `show` copies its progress to ours."""

    def __init__(self, command: str, *arguments: str, show: bool = False) -> None:
        self.command = command
        self._show = show
        self._last = deque[str](maxlen=LAST_LINES)
        words = [sys.executable, "-m", "services.cli.main", command, *arguments]
        self._process = spawn(words, output=subprocess.PIPE, folder=PROJECT_ROOT, death_signal=signal.SIGTERM)
        self._listener = threading.Thread(target=self._listen, name=f"words of {command}", daemon=True)
        self._listener.start()

    def wait_for_line(self, wanted: str) -> None:
        """Until it prints that line on its standard output; Died when it ends before."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.decode().strip() == wanted:
                return
        self._process.wait()
        self.check()

    def check(self) -> None:
        """Raises Died unless it runs."""
        if self._process.poll() is not None:
            self._listener.join(5.0)
            said = "\n    ".join(self._last)
            raise Died(
                f"`streamchat {self.command}` ended with status {self._process.returncode}:\n    {said}"
            )

    def end(self) -> None:
        """SIGTERM, and SIGKILL if that takes too long. Fine to call twice."""
        end_process(self._process, patience_s=END_PATIENCE_S)
        self._listener.join(5.0)
        for pipe in (self._process.stdout, self._process.stderr):
            if pipe is not None:
                pipe.close()

    def _listen(self) -> None:
        assert self._process.stderr is not None
        for line in self._process.stderr:
            text = line.decode(errors="replace").rstrip()
            self._last.append(text)
            if self._show and text.startswith("["):  # `up` puts the seconds before its own lines
                print(f"  {text}", flush=True)
