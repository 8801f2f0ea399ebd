"""What may be published: files that are videos, and nothing that names other files or addresses."""

from __future__ import annotations

from pathlib import Path

import pytest

from services.publisher.video_source import SourceUnavailable, VideoSource, open_source
from tests.services.attack_files import bait, fetchers
from tests.services.h264 import clip_file


def test_files_that_name_addresses_are_refused_and_fetch_nothing(tmp_path: Path) -> None:
    with bait() as trap:
        for name, data in fetchers(trap.url).items():
            for suffix in ("m3u8", "mpd", "mp4", "ffconcat", "sdp"):
                file = tmp_path / f"{name}.{suffix}"
                file.write_bytes(data)
                with pytest.raises(SourceUnavailable):
                    open_source(str(file))
        assert trap.num_visits == 0


def test_a_playlist_of_a_true_video_is_refused_too(tmp_path: Path) -> None:
    video = clip_file(tmp_path, num_frames=30)
    playlist = tmp_path / "list.ffconcat"
    playlist.write_text(f"ffconcat version 1.0\nfile '{video.name}'\n")
    with pytest.raises(SourceUnavailable):
        open_source(str(playlist))
    assert not open_source(str(video)).live


@pytest.mark.parametrize(
    "address", ["http://u:hunter2@127.0.0.1/x", "concat:a|b", "rtmp://u:hunter2@127.0.0.1/x"]
)
def test_other_addresses_are_refused_and_show_no_password(address: str) -> None:
    with pytest.raises(SourceUnavailable) as lost:
        open_source(address)
    assert "hunter2" not in str(lost.value)


def test_a_cameras_password_is_in_no_message(tmp_path: Path) -> None:
    secret = tmp_path / "source"
    secret.write_text("rtsp://admin:hunter2@127.0.0.1:9/stream\n")
    source = open_source(f"@{secret}")
    assert source == VideoSource(address="rtsp://admin:hunter2@127.0.0.1:9/stream", live=True)
    with pytest.raises(SourceUnavailable) as lost:
        next(source.units())
    assert str(lost.value).startswith("rtsp://127.0.0.1:9/stream: ")
    assert lost.value.__suppress_context__


def test_a_source_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(SourceUnavailable, match="nowhere: cannot be read"):
        open_source(f"@{tmp_path / 'nowhere'}")
