"""Files without times are sent at their frame rate; the rotation of a file travels with its packets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from services.publisher.video_source import AccessUnit, open_source
from tests.services.h264 import clip, clip_file, encoded, held_sideways


def raw_file(folder: Path, codec: str = "libx264", suffix: str = "h264", **options: Any) -> Path:
    path = folder / f"clip.{suffix}"
    path.write_bytes(b"".join(bytes(packet) for packet in encoded(45, codec=codec, **options)))
    return path


def units(path: Path, fps: float | None = None) -> list[AccessUnit]:
    return list(open_source(str(path), fps).units())


@pytest.mark.parametrize(("codec", "suffix"), [("libx264", "h264"), ("libx265", "hevc"), ("mjpeg", "mjpeg")])
def test_a_raw_file_is_timed_by_its_frame_rate(tmp_path: Path, codec: str, suffix: str) -> None:
    path = raw_file(tmp_path, codec, suffix)
    rate = 25 if codec == "mjpeg" else 15  # JPEGs know no rate
    source = open_source(str(path))
    assert not source.transcode
    assert any(f"no times of its pictures: sent at {rate} fps" in note for note in source.notes)
    found = units(path)
    assert [unit.time_s for unit in found] == pytest.approx([i / rate for i in range(45)])
    assert {unit.codec for unit in found} == {suffix}


def test_the_frame_rate_of_a_raw_file_can_be_given(tmp_path: Path) -> None:
    path = raw_file(tmp_path)
    assert np.diff([unit.time_s for unit in units(path, 29.97)]) == pytest.approx(1 / 29.97, rel=1e-4)
    assert any("30 fps (--fps)" in note for note in open_source(str(path), 30.0).notes)


@pytest.mark.parametrize("fps", [0.0, -5.0, 1e-9, 1e9, float("nan"), float("inf")])
def test_a_frame_rate_that_no_camera_has_is_refused(tmp_path: Path, fps: float) -> None:
    with pytest.raises(ValueError, match=r"fps: got .*, wanted 0.01 to 1000"):
        open_source(str(raw_file(tmp_path)), fps)


@pytest.mark.parametrize("container", ["raw", "avi"])
def test_pictures_out_of_order_without_times_are_put_in_order(tmp_path: Path, container: str) -> None:
    if container == "raw":
        path = raw_file(tmp_path, b_frames=2)
    else:
        path = clip_file(tmp_path, "clip.avi", num_frames=45, container="avi", b_frames=2)
    source = open_source(str(path))
    assert source.transcode
    assert any("out of order" in note for note in source.notes)
    assert np.diff([unit.time_s for unit in source.units()]) == pytest.approx(1 / 15)


def test_long_groups_of_pictures_are_seen_in_a_raw_file_too(tmp_path: Path) -> None:
    assert open_source(str(raw_file(tmp_path, gop=1000))).transcode


def test_a_file_with_times_keeps_them(tmp_path: Path) -> None:
    path = clip_file(tmp_path, num_frames=30)
    source = open_source(str(path), 50.0)
    assert (source.frame_rate, source.notes) == (None, ())
    assert np.diff([unit.time_s for unit in source.units()]) == pytest.approx(1 / 15, abs=1e-4)


@pytest.mark.parametrize("gop", [15, 1000])
def test_the_rotation_of_a_file_travels(tmp_path: Path, gop: int) -> None:
    path = tmp_path / "phone.mp4"
    path.write_bytes(held_sideways(clip(45, gop=gop)))
    assert open_source(str(path)).transcode == (gop == 1000)
    assert {unit.rotation for unit in units(path)} == {90}
    assert {unit.rotation for unit in units(clip_file(tmp_path, num_frames=5))} == {0}
