"""Runs `ray job submit` with the entrypoint and the variables of the rendered RayJob, on a local Ray. No test.

It uses the smallest recipe, and a local folder in place of the volume /data.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.helm.cluster import PATIENCE_S, Cluster, cluster
from tests.helm.rendered_chart import Object
from tests.helm.test_rendered_names import job
from tests.random_folder import make_random_folder
from tests.runs.training_job import RunFolder
from training.data.row_files import write_rows
from training.live_world.smoke_clips import question_rows, smoke_rows

STEPS = 10
# A step has three micro-batches, so one of the two workers has fewer in every step. The learning rate is high, because
# a steep curve shows every difference.
SETTINGS = (f"steps={STEPS}", "global_batch=6", "micro_batch=2", "save_every=3", "peak_lr=1e-3")
NUM_ROWS = 30  # two epochs
VALIDATION = "/data/rows/validation.parquet"
SMALLEST = {
    "--recipe sft": f"--recipe smoke --validation {VALIDATION} --set {' '.join(SETTINGS)}",
    "--workers 1:8": "--workers 2",
}


class SubmittedJob(RunFolder):
    """The folder of a run that has ended, and its output."""

    def __init__(self, data: Path) -> None:
        """`data`: folder in place of the volume."""
        super().__init__(data / "runs" / "sft")
        self.model = data / "runs" / "stage2"
        self.rows = (data / "rows" / "dense" / "rows.parquet", data / "rows" / "offline.parquet")
        self.validation = Path(VALIDATION.replace("/data/", f"{data}/"))
        self._fill_volume(data)
        spec = job("sft")["spec"]
        entrypoint: str = spec["entrypoint"]
        assert entrypoint.startswith("python training/sft.py --recipe sft ")
        for large, small in SMALLEST.items():
            assert large in entrypoint
            entrypoint = entrypoint.replace(large, small)
        entrypoint = entrypoint.replace("/data/", f"{data}/")
        with (
            tempfile.TemporaryDirectory(prefix="sc-", dir="/tmp") as folder,
            cluster(Path(folder), {}, cpus=2, labels={}) as ray,
        ):
            done = submit(ray, entrypoint, variables(spec))
        self.status, self.output = done.returncode, done.stdout + done.stderr

    @property
    def options(self) -> tuple[str, ...]:
        """Options that make another start of the smoke recipe the same run."""
        validation = ("--validation", str(self.validation))
        return "--model", str(self.model), "--rows", *map(str, self.rows), *validation, "--set", *SETTINGS

    def _fill_volume(self, data: Path) -> None:
        """Write the output of the earlier jobs: a random model, and rows."""
        self.model.mkdir(parents=True)
        make_random_folder(self.model)
        every = question_rows(Path(smoke_rows(data)[0]).parent)
        rows = every[:NUM_ROWS]
        self.rows[0].parent.mkdir(parents=True)
        write_rows(str(self.validation), every[NUM_ROWS : NUM_ROWS + 3])
        for path, some in zip(self.rows, (rows[::2], rows[1::2]), strict=True):
            path.parent.mkdir(parents=True, exist_ok=True)
            write_rows(str(path), some)


def variables(spec: Object) -> dict[str, str]:
    """Environment variables of the head's container, in which the driver runs."""
    (container,) = spec["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"]
    return {one["name"]: one["value"] for one in container["env"]}


def submit(ray: Cluster, entrypoint: str, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Run `ray job submit` with the token. Repeats while Ray is still starting its job agent."""
    command = [str(Path(sys.executable).with_name("ray")), "job", "submit", "--address", ray.jobs_url]
    command += ["--runtime-env-json", json.dumps({"env_vars": environment}), "--", *shlex.split(entrypoint)]
    credentials = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": ray.token}
    deadline = time.monotonic() + PATIENCE_S
    while True:
        done = subprocess.run(
            command, env=os.environ | credentials, capture_output=True, text=True, timeout=1500, check=False
        )
        if "No available agent" not in done.stdout + done.stderr or time.monotonic() > deadline:
            return done
