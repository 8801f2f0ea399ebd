"""The demo's parts that need no running stack; the whole demo is `make demo ONCE=1`."""

from __future__ import annotations

import av

from services.cli.chat import PrintedAnswer
from services.local.demo import FILM, report


def test_the_film_ships_with_its_licence() -> None:
    with av.open(str(FILM)) as film:
        video = film.streams.video[0]
        assert (video.codec_context.name, video.width, video.height) == ("h264", 176, 144)
        assert film.duration is not None
        assert 20 < film.duration / av.time_base < 22
    assert FILM.stat().st_size < 2**20
    assert "CC-BY-4.0" in (FILM.parent / "LICENSE.txt").read_text()


def test_the_last_line() -> None:
    answers = [
        PrintedAnswer(text="A red bus", ages_ms=[100.0, 200.0, 300.0], duration_s=1.0),
        PrintedAnswer(text="goes", ages_ms=[400.0], duration_s=1.0),
    ]
    assert report(answers, num_cameras=3, startup_s=21.26) == {
        "cameras": 3,
        "answers": 2,
        "words": 4,
        "frame_age_p50_ms": 200.0,
        "frame_age_p95_ms": 400.0,
        "tokens_per_s": 2.0,
        "startup_s": 21.3,
    }
