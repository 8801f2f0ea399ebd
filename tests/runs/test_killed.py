"""A run with a live Prometheus is killed twice. It must have the same samples and the same curve as a complete run.

The run pauses while the tests query Prometheus, because one of its two workers is suspended. The order of the tests
matters.
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
TOLERANCE = 1e-3  # relative: the order of the sums differs, and the differences grow from step to step


@dataclass(frozen=True, slots=True)
class Watched:
    """A run that is paused at its step `first` and will be killed at `second`. Both are random."""

    job: TrainingJob
    rank_1: psutil.Process
    prometheus: PrometheusServer
    before: tuple[float, float]  # share of the run and tokens at the first pause
    first: int
    second: int


@pytest.fixture(scope="module")
def watched(submitted_job: SubmittedJob, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    first, second = sorted(int(s) for s in np.random.default_rng().choice(range(4, 8), 2, replace=False))
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("RAY_metrics_report_interval_ms", "1000")
        out = tmp_path_factory.mktemp("killed") / "out"
        job = TrainingJob(out, "--workers", "2", *submitted_job.options)
    prometheus = PrometheusServer(tmp_path_factory.mktemp("prometheus"))
    try:
        job.wait_for_step(1)
        (rank_1 := job.rank_1()).suspend()
        eventually(lambda: bool(metric_addresses(job)), "no Ray agent exports the training metrics")
        prometheus.scrape(metric_addresses(job)[0])
        eventually(
            lambda: bool(prometheus.values(DONE) and prometheus.values(TOKENS)),
            "Prometheus has no training metrics",
        )
        before = prometheus.values(DONE)[0], prometheus.values(TOKENS)[0]
        rank_1.resume()
        job.wait_for_step(first)
        rank_1.suspend()
        yield Watched(job, rank_1, prometheus, before, first, second)
    finally:
        prometheus.close()
        if job.process.poll() is None:
            job.kill_everything()


def metric_addresses(job: TrainingJob) -> list[str]:
    """HOST:PORT of the job's Ray agents that export training metrics."""
    addresses: list[str] = []
    for process in job.child_processes():
        if "DashboardAgent" not in " ".join(process.cmdline()):
            continue
        ports = [
            each.laddr.port for each in process.net_connections("tcp") if each.status == psutil.CONN_LISTEN
        ]
        addresses += [f"{HOST}:{port}" for port in ports]
    return [address for address in addresses if "ray_streamchat_train_loss" in metrics_page(address)]


def metrics_page(address: str) -> str:
    """The text of /metrics, or "" if there is no such server."""
    try:
        return httpx.get(f"http://{address}/metrics", trust_env=False, timeout=5).text
    except (httpx.HTTPError, UnicodeDecodeError):
        return ""


def test_metrics_rise_while_the_run_continues(watched: Watched) -> None:
    done, tokens = watched.before
    eventually(lambda: watched.prometheus.values(DONE)[0] > done, "the run does not continue")
    eventually(lambda: watched.prometheus.values(TOKENS)[0] > tokens, "the token counter does not rise")


@pytest.mark.parametrize("asked", QUERIES)
def test_every_query_returns_data(watched: Watched, asked: Asked) -> None:
    eventually(lambda: bool(watched.prometheus.values(asked.expr)), f"no data for {asked.expr}")


def test_picture_of_the_dashboard(watched: Watched, tmp_path: Path) -> None:
    check_picture("training", watched.prometheus, tmp_path / "training.png")


def test_killed_workers_and_a_killed_job_do_not_change_the_curve(
    watched: Watched, submitted_job: SubmittedJob
) -> None:
    job, first, second = watched.job, watched.first, watched.second
    watched.rank_1.resume()
    eventually(job.has_checkpoint, "no checkpoint after three steps")
    stops = [job.log()[-1]["step"]]
    watched.rank_1.send_signal(signal.SIGKILL)
    job.wait_for_step(second, beyond=len(job.log()))
    job.kill_everything()
    stops.append(job.log()[-1]["step"])
    job = TrainingJob(job.out, "--workers", "1", *submitted_job.options)  # one worker has the curve of two
    assert job.finish() == 0, job.text()
    num_workers = re.findall(r"continuing from step \d+ with (\d) workers", job.text())
    assert set(num_workers) == {"2", "1"}
    assert f"trained: {job.out}" in job.text()
    assert load_model(job.out).config.name
    steps = [row["step"] for row in job.log()]
    assert len(steps) > len(set(steps)) or {*stops} <= {3, 6, 9}, "no step was repeated"
    assert job.samples() == submitted_job.samples()
    curve, wanted = job.curve(), submitted_job.curve()
    assert sorted(curve) == sorted(wanted)
    for step, loss in curve.items():
        assert loss == pytest.approx(wanted[step], rel=TOLERANCE), f"killed at {first} and {second}"
