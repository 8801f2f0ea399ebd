"""A live Prometheus scrapes a training run, and every query of the training dashboard returns data from it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from services.embedded import HOST
from tests.helm.queries import Asked, of_panels
from tests.live.live_stack import until
from tests.live.scraper import Scraper, check_picture
from tests.training.training_job import TrainingJob

pytestmark = pytest.mark.timeout(900)

QUERIES = [pytest.param(asked, id=asked.where) for asked in of_panels() if asked.where.startswith("training")]


@pytest.fixture(scope="module")
def training(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A training run that lasts as long as it is looked at; where its Ray tells the metrics (HOST:PORT)."""
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("RAY_metrics_report_interval_ms", "1000")
        job = TrainingJob(tmp_path_factory.mktemp("training") / "run", "--set", "steps=100000")
    try:
        job.wait_for_step(1)
        until(lambda: bool(telling(job)), "no agent of the training's Ray tells its metrics")
        yield telling(job)[0]
    finally:
        job.kill_everything()


def telling(job: TrainingJob) -> list[str]:
    """Where below the job somebody tells training metrics."""
    addresses: list[str] = []
    for process in psutil.Process(job.process.pid).children(recursive=True):
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


@pytest.fixture(scope="module")
def scraper(training: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scraper]:
    """It has seen some steps."""
    scraper = Scraper(tmp_path_factory.mktemp("prometheus"))
    scraper.scrape(training)
    yield scraper
    scraper.close()


@pytest.mark.parametrize("asked", QUERIES)
def test_every_query_returns_data(scraper: Scraper, asked: Asked) -> None:
    until(lambda: bool(scraper.values(asked.expr)), f"nothing comes of {asked.expr}")


def test_a_run_goes_on_and_is_told(scraper: Scraper) -> None:
    done, tokens = "max(streamchat_train_done_ratio)", "sum(streamchat_train_tokens_total)"
    before = scraper.values(done)[0], scraper.values(tokens)[0]
    until(lambda: scraper.values(done)[0] > before[0], "the run stands still")
    until(lambda: scraper.values(tokens)[0] > before[1], "no tokens are told")


def test_picture_of_the_dashboard(scraper: Scraper, tmp_path: Path) -> None:
    check_picture("training", scraper, tmp_path / "training.png")
