"""What a training run leaves behind; and `python training/sft.py` as people start it, with ways to kill it. No test."""

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
    """The folder of a run, while it goes and afterwards."""

    def __init__(self, out: Path) -> None:
        self.out = out

    def log(self) -> list[dict[str, float]]:
        """Reports so far, those of steps that were made again included."""
        path = self.out / "run" / "log.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []

    def curve(self) -> dict[int, float]:
        """The loss of each step, where it was made again the last."""
        return {int(row["step"]): row["loss"] for row in self.log()}

    def parts(self) -> list[dict[str, Any]]:
        """The record of all parts that were trained on."""
        files = sorted((self.out / "run").glob("micro_batches-*.jsonl"))
        return [json.loads(line) for file in files for line in file.read_text().splitlines()]

    def has_checkpoint(self) -> bool:
        """Whether there is one from which the run would go on."""
        path = self.out / "run" / "checkpoints" / "checkpoint_manager_snapshot.json"
        return path.is_file() and '"step-' in path.read_text()

    def samples(self) -> dict[int, set[str]]:
        """What each step has seen; a step that was made again must have seen the same."""
        seen: dict[int, dict[int, list[str]]] = {}
        for part in self.parts():
            of_step = seen.setdefault(part["step"], {})
            assert of_step.setdefault(part["part"], part["samples"]) == part["samples"]
        flat = {step: [s for samples in parts.values() for s in samples] for step, parts in seen.items()}
        assert all(len(set(samples)) == len(samples) for samples in flat.values())
        return {step: set(samples) for step, samples in flat.items()}


class TrainingJob(RunFolder):
    """One start of the command, with a private Ray."""

    def __init__(self, out: Path, *options: str) -> None:
        super().__init__(out)
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
            cwd=PROJECT_ROOT,
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

    def wait_for_step(self, step: int, beyond: int = 0) -> None:
        """Until that step is in the log, beyond so many lines."""
        while len(log := self.log()) <= beyond or log[-1]["step"] < step:
            assert self.process.poll() is None, self.text()
            time.sleep(0.05)

    def follower(self) -> psutil.Process:
        """Of the two processes that train the one that keeps no record: the other waits when this one stands still."""
        workers = [p for p in self.family() if "RayTrainWorker" in " ".join(p.cmdline())]
        assert len(workers) == 2, [p.cmdline() for p in self.family()]
        (found,) = (p for p in workers if not any("tensorboard" in file.path for file in p.open_files()))
        return found

    def kill_everything(self) -> None:
        """SIGKILL for the command, its workers and all of its Ray at once."""
        family = [psutil.Process(self.process.pid), *self.family()]
        for process in family:
            with contextlib.suppress(psutil.NoSuchProcess):  # ended by itself meanwhile
                process.send_signal(signal.SIGKILL)
        psutil.wait_procs(family)
        self.finish()

    def family(self) -> list[psutil.Process]:
        """The processes below it: its Ray, and those that train."""
        return psutil.Process(self.process.pid).children(recursive=True)
