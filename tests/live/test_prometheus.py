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
from tests.live.live_stack import MODEL, LiveStack, asking, look_at, until
from tests.live.scraper import Scraper, check_picture
from tests.services.h264 import clip_file

pytestmark = pytest.mark.timeout(600)

QUERIES = [
    pytest.param(asked, id=asked.where)
    for asked in [*of_panels(), *of_alerts()]
    if not asked.where.startswith("training")
]


@pytest.fixture(scope="module")
def scraper(live: LiveStack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scraper]:
    """It has seen cameras, a publisher, and answers."""
    folder = tmp_path_factory.mktemp("prometheus")
    publisher = f"{HOST}:{free_port()}"
    clip = clip_file(folder, num_frames=150, size=(320, 240))
    options = (str(clip), "--camera", "gate", "--loop", "--kafka", live.kafka, "--metrics", publisher)
    with ExitStack() as ending:
        ending.callback(BackgroundCommand("publish", *options).end)
        live.wait_for_frames("gate")
        scraper = Scraper(folder)
        ending.callback(scraper.close)
        scraper.scrape(live.url.removeprefix("http://"), publisher)
        ask(live)
        yield scraper


def ask(live: LiveStack) -> None:
    """Questions to two cameras, and one that is refused."""
    with live.client() as client:
        for camera in ("door", "gate", "door"):
            answer = client.chat.completions.create(
                model=MODEL,
                messages=asking(look_at(camera)),
                max_tokens=20,
                extra_body={"streamchat": {"tokens_per_second": 10}},
            )
            assert answer.choices[0].message.content


@pytest.mark.parametrize("asked", QUERIES)
def test_every_query_returns_data(scraper: Scraper, asked: Asked) -> None:
    until(lambda: bool(scraper.values(asked.expr)), f"nothing comes of {asked.expr}")


def test_the_headline_is_what_it_says(scraper: Scraper) -> None:
    """Tokens that were spoken, each with the age of its frame; a camera of 15 frames a second, looked at 5 times."""
    count = 'sum(streamchat_frame_age_at_decode_seconds_count{camera="gate"})'
    until(lambda: scraper.values(count) == [20], f"{scraper.values(count)} ages for 20 tokens")
    assert scraper.values("sum(streamchat_generation_tokens_total)")[0] >= 60
    ages = (
        'histogram_quantile(0.5, sum by (le) (streamchat_frame_age_at_decode_seconds_bucket{camera="gate"}))'
    )
    until(lambda: bool(scraper.values(ages)), "no median of the ages")
    assert 0.0 < scraper.values(ages)[0] < 5.0
    up = 'max by (camera) (streamchat_camera_up{camera=~"door|yard|gate"})'
    assert scraper.values(up) == [1.0, 1.0, 1.0]


def test_pictures_of_the_dashboards(scraper: Scraper, tmp_path: Path) -> None:
    for name in dashboards().keys() - {"training"}:
        check_picture(name, scraper, tmp_path / f"{name}.png")
