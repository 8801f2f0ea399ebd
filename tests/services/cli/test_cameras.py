"""The cameras in the terminal."""

from __future__ import annotations

import pytest

from services.cli.cameras import camera_table, list_cameras
from services.cli.chat_client import Camera
from tests.services.served_gateway import gateway


def test_cameras_in_columns() -> None:
    rows = [
        Camera(id="door", state="live", fps=5.0, newest_frame_age_ms=80.2, num_frames=16, capacity=16),
        Camera(id="a-long-name", state="silent", fps=0.0, newest_frame_age_ms=9e3, num_frames=2, capacity=16),
    ]
    lines = camera_table(rows).splitlines()
    assert lines[0].split() == [
        "camera",
        "state",
        "frames/s",
        "newest",
        "frame",
        "frames",
        "kept",
        "name",
        "problem",
    ]
    assert lines[1].startswith("door         live    5.0")
    assert lines[1].index("80 ms ago") == lines[2].index("9000 ms ago")


def test_the_command_against_a_gateway(capsys: pytest.CaptureFixture[str]) -> None:
    with gateway() as served:
        assert list_cameras(served.url) == 0
        assert capsys.readouterr().out.splitlines()[1].startswith("front-door  live")
        served.store.forget("front-door")
        assert list_cameras(served.url) == 0
        assert "no cameras yet" in capsys.readouterr().err
