"""Reads the folder of a training run; and starts `python training/sft.py`, with ways to kill it. No test."""

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

from model.config import PROJECT_ROOT

PATIENCE_S = 600


class RunFolder:
    """The folder of a run, during and after the run."""

    def __init__(self, out: Path) -> None:
        self.out = out

    def log(self) -> list[dict[str, float]]:
        """All reports so far. Steps that were repeated after a restart appear again."""
        path = self.out / "run" / "log.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []

    def curve(self) -> dict[int, float]:
        """The loss of each step. For a repeated step, the last loss."""
        return {int(row["step"]): row["loss"] for row in self.log()}

    def micro_batches(self) -> list[dict[str, Any]]:
        """The record of all micro-batches that were trained on."""
        files = sorted((self.out / "run").glob("micro_batches-*.jsonl"))
        return [json.loads(line) for file in files for line in file.read_text().splitlines()]

    def has_checkpoint(self) -> bool:
        """Whether the run has a checkpoint to continue from."""
        path = self.out / "run" / "checkpoints" / "checkpoint_manager_snapshot.json"
        return path.is_file() and '"step-' in path.read_text()

    def samples(self) -> dict[int, set[str]]:
        """The samples of each step. Raises AssertionError if a repeated step had other samples."""
        seen: dict[tuple[int, int], dict[int, list[str]]] = {}
        for record in self.micro_batches():
            of_step = seen.setdefault((record["step"], record["workers"]), {})
            assert of_step.setdefault(record["micro_batch"], record["samples"]) == record["samples"]
        steps: dict[int, set[str]] = {}
        for (step, _), batches in seen.items():
            samples = [s for batch in batches.values() for s in batch]
            assert len(set(samples)) == len(samples)
            steps.setdefault(step, set()).update(samples)
        return steps


class TrainingJob(RunFolder):
    """One start of the command, with a private Ray."""

    def __init__(self, out: Path, *options: str) -> None:
        super().__init__(out)
        self.output = (out.parent / f"{out.name}.txt").open("a+")
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
            cwd=PROJECT_ROOT,
            env=environment,
            stdout=self.output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def text(self) -> str:
        """The output of all starts with this folder."""
        return (self.out.parent / f"{self.out.name}.txt").read_text()

    def finish(self) -> int:
        """Wait for the end. Returns the exit status."""
        try:
            status = self.process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            self.kill_everything()
            raise AssertionError(f"the job has not ended after {PATIENCE_S} s: {self.text()}") from None
        self.output.close()
        return status

    def wait_for_step(self, step: int, beyond: int = 0) -> None:
        """Wait until the log has more than `beyond` lines and has reached the step."""
        while len(log := self.log()) <= beyond or log[-1]["step"] < step:
            assert self.process.poll() is None, self.text()
            time.sleep(0.05)

    def rank_1(self) -> psutil.Process:
        """The worker of rank 1, which writes no log. While it is suspended, rank 0 waits for it."""
        workers = [p for p in self.child_processes() if "RayTrainWorker" in " ".join(p.cmdline())]
        assert len(workers) == 2, [p.cmdline() for p in self.child_processes()]
        (worker,) = (p for p in workers if not any("tensorboard" in file.path for file in p.open_files()))
        return worker

    def kill_everything(self) -> None:
        """Send SIGKILL to the command, its workers and all processes of its Ray."""
        processes = [psutil.Process(self.process.pid), *self.child_processes()]
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):  # the process has ended already
                process.send_signal(signal.SIGKILL)
        psutil.wait_procs(processes)
        self.finish()

    def child_processes(self) -> list[psutil.Process]:
        """All child processes: its Ray and the workers."""
        return psutil.Process(self.process.pid).children(recursive=True)
