"""Times of a published video's frames."""

from __future__ import annotations

from pathlib import Path

import pytest

from training.evaluation.camera_publisher import CameraLost, CameraPublisher, packet_times
from training.live_world.clips import Clip


def test_packets_have_their_pictures_times(held_out: list[Clip]) -> None:
    times = packet_times(held_out[0].path)
    assert times == pytest.approx([0.1 * number for number in range(200)])


def test_a_frames_id_ends_with_its_packets_number(held_out: list[Clip]) -> None:
    publisher = CameraPublisher("http://127.0.0.1:1/v1", "127.0.0.1:1", held_out[0].path, "camera")
    publisher.times = packet_times(held_out[0].path)
    assert publisher.time_of("1700000000000-25") == pytest.approx(2.5)
    assert publisher.time_of("1700000000000-999") == pytest.approx(19.9)


async def test_a_time_after_the_end_of_the_video_is_an_error(held_out: list[Clip]) -> None:
    publisher = CameraPublisher("http://127.0.0.1:1", "127.0.0.1:1", held_out[0].path, "camera")
    publisher.times = packet_times(held_out[0].path)
    with pytest.raises(CameraLost, match=r"0000\.mp4 ends at second 19\.9; wanted second 25"):
        await publisher.wait_until(25.0)


def test_a_file_without_video_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    path.write_bytes(b"no video")
    with pytest.raises(CameraLost, match=r"a\.mp4 cannot be read as video"):
        packet_times(path)
