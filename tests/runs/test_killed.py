"""A run is watched by a live Prometheus, and killed twice: no kill changes what it learns.

It stands still while it is watched, since one of its two workers does. The tests stand in the order of the run.
"""

from __future__ import annotations

import re
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np
import psutil
import pytest

from model.checkpoint.folder import load_model
from services.local.embedded_servers import HOST
from tests.helm.queries import Asked, of_panels
from tests.live.clients.live_stack import eventually
from tests.live.clients.prometheus_server import PrometheusServer, check_picture
from tests.runs.submitted_job import SubmittedJob
from tests.runs.training_job import TrainingJob

pytestmark = pytest.mark.timeout(900)

QUERIES = [pytest.param(asked, id=asked.where) for asked in of_panels() if asked.where.startswith("training")]
DONE, TOKENS = "max(streamchat_train_done_ratio)", "sum(streamchat_train_tokens_total)"
TOLERANCE = 1e-3  # relative: sums are taken in another order, and steps build on each other


@dataclass(frozen=True, slots=True)
class Watched:
    """A run that stands still at its step `first`, and will be killed at `second`, both taken by chance."""

    job: TrainingJob
    follower: psutil.Process
    prometheus: PrometheusServer
    before: tuple[float, float]  # done, and tokens, when it stood still for the first time
    first: int
    second: int


@pytest.fixture(scope="module")
def watched(undisturbed: SubmittedJob, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    first, second = sorted(int(s) for s in np.random.default_rng().choice(range(4, 8), 2, replace=False))
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("RAY_metrics_report_interval_ms", "1000")
        out = tmp_path_factory.mktemp("killed") / "out"
        job = TrainingJob(out, "--workers", "2", *undisturbed.options)
    prometheus = PrometheusServer(tmp_path_factory.mktemp("prometheus"))
    try:
        job.wait_for_step(1)
        (follower := job.follower()).suspend()
        eventually(lambda: bool(telling(job)), "no agent of the training's Ray tells its metrics")
        prometheus.scrape(telling(job)[0])
        eventually(lambda: bool(prometheus.values(DONE) and prometheus.values(TOKENS)), "nothing is told")
        before = prometheus.values(DONE)[0], prometheus.values(TOKENS)[0]
        follower.resume()
        job.wait_for_step(first)
        follower.suspend()
        yield Watched(job, follower, prometheus, before, first, second)
    finally:
        prometheus.close()
        if job.process.poll() is None:
            job.kill_everything()


def telling(job: TrainingJob) -> list[str]:
    """Where below the job somebody tells training metrics (HOST:PORT)."""
    addresses: list[str] = []
    for process in job.family():
        if "DashboardAgent" not in " ".join(process.cmdline()):
            continue
        ports = [
            each.laddr.port for each in process.net_connections("tcp") if each.status == psutil.CONN_LISTEN
        ]
        addresses += [f"{HOST}:{port}" for port in ports]
    return [address for address in addresses if "ray_streamchat_train_loss" in page(address)]


def page(address: str) -> str:
    """What is at /metrics there; nothing when it is no such server."""
    try:
        return httpx.get(f"http://{address}/metrics", trust_env=False, timeout=5).text
    except (httpx.HTTPError, UnicodeDecodeError):
        return ""


def test_a_run_goes_on_and_is_told(watched: Watched) -> None:
    done, tokens = watched.before
    eventually(lambda: watched.prometheus.values(DONE)[0] > done, "the run stands still")
    eventually(lambda: watched.prometheus.values(TOKENS)[0] > tokens, "no tokens are told")


@pytest.mark.parametrize("asked", QUERIES)
def test_every_query_returns_data(watched: Watched, asked: Asked) -> None:
    eventually(lambda: bool(watched.prometheus.values(asked.expr)), f"nothing comes of {asked.expr}")


def test_picture_of_the_dashboard(watched: Watched, tmp_path: Path) -> None:
    check_picture("training", watched.prometheus, tmp_path / "training.png")


def test_killed_workers_and_a_killed_job_leave_no_trace_in_the_curve(
    watched: Watched, undisturbed: SubmittedJob
) -> None:
    job, first, second = watched.job, watched.first, watched.second
    watched.follower.resume()
    eventually(job.has_checkpoint, "no checkpoint after three steps")
    stops = [job.log()[-1]["step"]]
    watched.follower.send_signal(signal.SIGKILL)
    job.wait_for_step(second, beyond=len(job.log()))
    job.kill_everything()
    stops.append(job.log()[-1]["step"])
    job = TrainingJob(job.out, "--workers", "1", *undisturbed.options)  # one has the curve of two
    assert job.finish() == 0, job.text()
    going_on = re.findall(r"going on from step \d+ with (\d) workers", job.text())
    assert set(going_on) == {"2", "1"}
    assert f"trained: {job.out}" in job.text()
    assert load_model(job.out).config.name
    steps = [row["step"] for row in job.log()]
    assert len(steps) > len(set(steps)) or {*stops} <= {3, 6, 9}, "nothing was made again"
    assert job.samples() == undisturbed.samples()
    curve, wanted = job.curve(), undisturbed.curve()
    assert sorted(curve) == sorted(wanted)
    for step, loss in curve.items():
        assert loss == pytest.approx(wanted[step], rel=TOLERANCE), f"killed at {first} and {second}"
