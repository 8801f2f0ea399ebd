"""`ray job submit` with the entrypoint and the variables of the rendered RayJob, on a local Ray.

Only the recipe is the smallest, the workers one, and the volume /data a folder of this machine.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from model.folder import load_model
from tests.helm.cluster import PATIENCE_S, Cluster, cluster
from tests.helm.rendered_chart import Object
from tests.helm.test_rendered_names import job
from tests.random_folder import make_random_folder
from training.row import write_rows
from training.smoke_clips import question_rows, smoke_rows

SMALLEST = {"--recipe sft": "--recipe smoke --set steps=2 save_every=2", "--workers 1:8": "--workers 1"}
pytestmark = pytest.mark.timeout(1800)


@pytest.fixture
def ray() -> Iterator[Cluster]:
    with (
        tempfile.TemporaryDirectory(prefix="sc-", dir="/tmp") as folder,
        cluster(Path(folder), {}, cpus=2, labels={}) as started,
    ):
        yield started


def test_the_jobs_entrypoint_trains_a_folder(ray: Cluster, tmp_path: Path) -> None:
    spec = job("sft")["spec"]
    data = tmp_path / "data"
    fill_volume(data)
    entrypoint: str = spec["entrypoint"].replace("/data/", f"{data}/")
    assert entrypoint.startswith("python training/sft.py --recipe sft ")
    for words, small in SMALLEST.items():
        assert words in entrypoint
        entrypoint = entrypoint.replace(words, small)
    done = submit(ray, entrypoint, variables(spec))
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert "succeeded" in done.stdout
    assert load_model(data / "runs" / "sft").config.name


def fill_volume(data: Path) -> None:
    """What the earlier jobs would have left on the volume."""
    (data / "runs" / "stage2").mkdir(parents=True)
    make_random_folder(data / "runs" / "stage2")
    rows = question_rows(Path(smoke_rows(data)[0]).parent)
    (data / "rows" / "dense").mkdir(parents=True)
    for name, some in (("dense/rows.parquet", rows[::2]), ("offline.parquet", rows[1::2])):
        write_rows(str(data / "rows" / name), some)


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
