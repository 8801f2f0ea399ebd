"""A `streamchat` command that runs in the background and ends with this process."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections import deque

from model.config import PROJECT_ROOT
from services.processes.child_processes import end_process, spawn

MAX_KEPT_LINES = 12
END_PATIENCE_S = 20.0  # `up` has many processes to end


class CommandEnded(RuntimeError):
    """A command ended by itself; the message has the last lines it printed."""


class BackgroundCommand:
    """A running `streamchat COMMAND`. It ends when the thread that made this object ends.

    `show_progress` prints the progress lines of `up` on our standard output.
    """

    def __init__(self, command: str, *arguments: str, show_progress: bool = False) -> None:
        self.command = command
        self._show_progress = show_progress
        self._last_lines = deque[str](maxlen=MAX_KEPT_LINES)
        line = [sys.executable, "-m", "services.cli.main", command, *arguments]
        self._process = spawn(line, output=subprocess.PIPE, folder=PROJECT_ROOT, death_signal=signal.SIGTERM)
        self._reader = threading.Thread(target=self._read_errors, name=f"stderr of {command}", daemon=True)
        self._reader.start()

    def wait_for_line(self, wanted: str) -> None:
        """Wait until it prints that line on its standard output. CommandEnded when it ends before."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.decode().strip() == wanted:
                return
        self._process.wait()
        self.check()

    def check(self) -> None:
        """Raises CommandEnded unless it runs."""
        if self._process.poll() is not None:
            self._reader.join(5.0)
            lines = "\n    ".join(self._last_lines)
            raise CommandEnded(
                f"`streamchat {self.command}` ended with status {self._process.returncode}:\n    {lines}"
            )

    def end(self) -> None:
        """SIGTERM, and SIGKILL if that takes too long. Fine to call twice."""
        end_process(self._process, patience_s=END_PATIENCE_S)
        self._reader.join(5.0)
        for pipe in (self._process.stdout, self._process.stderr):
            if pipe is not None:
                pipe.close()

    def _read_errors(self) -> None:
        assert self._process.stderr is not None
        for line in self._process.stderr:
            text = line.decode(errors="replace").rstrip()
            self._last_lines.append(text)
            if self._show_progress and text.startswith("["):  # `up` begins its own lines with [seconds]
                print(f"  {text}", flush=True)
