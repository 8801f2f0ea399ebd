"""`python training/sft.py` as people start it, with a private Ray; and ways to kill it. No test."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).parents[2]
PATIENCE_S = 600


class TrainingJob:
    """One start of the command; `out` is the run's folder."""

    def __init__(self, out: Path, *options: str) -> None:
        self.out = out
        self.said = (out.parent / f"{out.name}.txt").open("a+")
        command = [
            sys.executable,
            "training/sft.py",
            "--recipe",
            "smoke",
            "--ray",
            "local",
            "--out",
            str(out),
            *options,
        ]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment,
            stdout=self.said,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def text(self) -> str:
        """What it has said, over all starts with this folder."""
        return (self.out.parent / f"{self.out.name}.txt").read_text()

    def finish(self) -> int:
        """Wait for its end; its exit status."""
        try:
            status = self.process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            self.kill_everything()
            raise AssertionError(f"not at its end after {PATIENCE_S} s: {self.text()}") from None
        self.said.close()
        return status

    def wait_for_step(self, step: int) -> None:
        """Until that step is in the log."""
        while not self.log() or self.log()[-1]["step"] < step:
            assert self.process.poll() is None, self.text()
            time.sleep(0.05)

    def kill_a_worker(self) -> None:
        """SIGKILL for one of the processes that train."""
        workers = [p for p in self._family() if "RayTrainWorker" in " ".join(p.cmdline())]
        assert len(workers) == 2, [p.cmdline() for p in self._family()]
        workers[1].send_signal(signal.SIGKILL)

    def kill_everything(self) -> None:
        """SIGKILL for the command, its workers and all of its Ray at once."""
        family = [psutil.Process(self.process.pid), *self._family()]
        for process in family:
            with contextlib.suppress(psutil.NoSuchProcess):  # ended by itself meanwhile
                process.send_signal(signal.SIGKILL)
        psutil.wait_procs(family)
        self.finish()

    def log(self) -> list[dict[str, float]]:
        """Reports so far, those of steps that were made again included."""
        path = self.out / "run" / "log.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []

    def curve(self) -> dict[int, float]:
        """The loss of each step, where it was made again the last."""
        return {int(row["step"]): row["loss"] for row in self.log()}

    def parts(self) -> list[dict[str, Any]]:
        """The record of all parts that were trained on."""
        files = sorted((self.out / "run").glob("parts-*.jsonl"))
        return [json.loads(line) for file in files for line in file.read_text().splitlines()]

    def _family(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)
