"""A live Prometheus scrapes the running stack, and every query of every panel and alert returns data from it.

The panels of training are in tests/runs/test_killed.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from services.local.background_command import BackgroundCommand
from services.local.embedded_servers import HOST, free_port
from tests.helm.queries import Asked, dashboards, of_alerts, of_panels
from tests.live.clients.live_stack import MODEL, LiveStack, camera_part, eventually, question_about
from tests.live.clients.prometheus_server import PrometheusServer, check_picture
from tests.services.h264 import clip_file

pytestmark = pytest.mark.timeout(600)

QUERIES = [
    pytest.param(asked, id=asked.where)
    for asked in [*of_panels(), *of_alerts()]
    if not asked.where.startswith("training")
]


@pytest.fixture(scope="module")
def prometheus(live: LiveStack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrometheusServer]:
    """A Prometheus that has scraped cameras, a publisher, and answers."""
    folder = tmp_path_factory.mktemp("prometheus")
    publisher = f"{HOST}:{free_port()}"
    clip = clip_file(folder, num_frames=150, size=(320, 240))
    options = (str(clip), "--camera", "gate", "--loop", "--kafka", live.kafka, "--metrics", publisher)
    with ExitStack() as ending:
        ending.callback(BackgroundCommand("publish", *options).end)
        live.wait_for_frames("gate")
        prometheus = PrometheusServer(folder)
        ending.callback(prometheus.close)
        prometheus.scrape(live.url.removeprefix("http://"), publisher)
        ask(live)
        yield prometheus


def ask(live: LiveStack) -> None:
    """Questions to two cameras, and one that is refused."""
    with live.client() as client:
        for camera in ("door", "gate", "door"):
            answer = client.chat.completions.create(
                model=MODEL,
                messages=question_about(camera_part(camera)),
                max_tokens=20,
                extra_body={"streamchat": {"tokens_per_second": 10}},
            )
            assert answer.choices[0].message.content


@pytest.mark.parametrize("asked", QUERIES)
def test_every_query_returns_data(prometheus: PrometheusServer, asked: Asked) -> None:
    eventually(lambda: bool(prometheus.values(asked.expr)), f"nothing comes of {asked.expr}")


def test_the_headline_is_what_it_says(prometheus: PrometheusServer) -> None:
    """One frame age for each generated token, and all cameras up."""
    count = 'sum(streamchat_frame_age_at_decode_seconds_count{camera="gate"})'
    eventually(lambda: prometheus.values(count) == [20], f"{prometheus.values(count)} ages for 20 tokens")
    assert prometheus.values("sum(streamchat_generation_tokens_total)")[0] >= 60
    ages = (
        'histogram_quantile(0.5, sum by (le) (streamchat_frame_age_at_decode_seconds_bucket{camera="gate"}))'
    )
    eventually(lambda: bool(prometheus.values(ages)), "no median of the ages")
    assert 0.0 < prometheus.values(ages)[0] < 5.0
    up = 'max by (camera) (streamchat_camera_up{camera=~"door|yard|gate"})'
    assert prometheus.values(up) == [1.0, 1.0, 1.0]


def test_pictures_of_the_dashboards(prometheus: PrometheusServer, tmp_path: Path) -> None:
    for name in dashboards().keys() - {"training"}:
        check_picture(name, prometheus, tmp_path / f"{name}.png")
