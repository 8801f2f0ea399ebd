"""`ray job submit` with the entrypoint and the variables of the rendered RayJob, on a local Ray. No test.

Only the recipe is the smallest, and the volume /data a folder of this machine.
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
# Three parts a step, so that one of two workers has less to do in every step. The rate is high: a curve that is steep
# tells every difference.
SETTINGS = (f"steps={STEPS}", "global_batch=6", "micro_batch=2", "save_every=3", "peak_lr=1e-3")
NUM_ROWS = 30  # two epochs
SMALLEST = {"--recipe sft": f"--recipe smoke --set {' '.join(SETTINGS)}", "--workers 1:8": "--workers 2"}


class SubmittedJob(RunFolder):
    """The run, when it has ended."""

    def __init__(self, data: Path) -> None:
        """`data` stands for the volume."""
        super().__init__(data / "runs" / "sft")
        self.model = data / "runs" / "stage2"
        self.rows = (data / "rows" / "dense" / "rows.parquet", data / "rows" / "offline.parquet")
        self._fill_volume(data)
        spec = job("sft")["spec"]
        entrypoint: str = spec["entrypoint"].replace("/data/", f"{data}/")
        assert entrypoint.startswith("python training/sft.py --recipe sft ")
        for words, small in SMALLEST.items():
            assert words in entrypoint
            entrypoint = entrypoint.replace(words, small)
        with (
            tempfile.TemporaryDirectory(prefix="sc-", dir="/tmp") as folder,
            cluster(Path(folder), {}, cpus=2, labels={}) as ray,
        ):
            done = submit(ray, entrypoint, variables(spec))
        self.status, self.said = done.returncode, done.stdout + done.stderr

    @property
    def options(self) -> tuple[str, ...]:
        """What another start of the smoke recipe needs to be the same run."""
        return "--model", str(self.model), "--rows", *map(str, self.rows), "--set", *SETTINGS

    def _fill_volume(self, data: Path) -> None:
        """What the earlier jobs would have left: a model that knows nothing, and rows."""
        self.model.mkdir(parents=True)
        make_random_folder(self.model)
        rows = question_rows(Path(smoke_rows(data)[0]).parent)[:NUM_ROWS]
        for path, some in zip(self.rows, (rows[::2], rows[1::2]), strict=True):
            path.parent.mkdir(parents=True, exist_ok=True)
            write_rows(str(path), some)


def variables(spec: Object) -> dict[str, str]:
    """Of the head's container, where the driver runs."""
    (container,) = spec["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"]
    return {one["name"]: one["value"] for one in container["env"]}


def submit(ray: Cluster, entrypoint: str, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """`ray job submit`, as a person would who knows the token: again as long as Ray still starts what takes jobs."""
    command = [str(Path(sys.executable).with_name("ray")), "job", "submit", "--address", ray.jobs_url]
    command += ["--runtime-env-json", json.dumps({"env_vars": environment}), "--", *shlex.split(entrypoint)]
    knowing = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": ray.token}
    deadline = time.monotonic() + PATIENCE_S
    while True:
        done = subprocess.run(
            command, env=os.environ | knowing, capture_output=True, text=True, timeout=1500, check=False
        )
        if "No available agent" not in done.stdout + done.stderr or time.monotonic() > deadline:
            return done
