"""Frames of rows: the right frames at the right times, and bad rows for files that cannot be read."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from training.data.bad_row import BadRow
from training.data.frames.frame_cache import FrameCache
from training.data.frames.video_frames import FrameReader
from training.data.training_row import TrainingRow, Turn
from training.live_world.clips import Clip

READER = FrameReader(size=32, frames_per_second=1.0, max_frames=6)


def dense(video: Path | str, start_s: float = 4.0, end_s: float = 7.0, **changes: object) -> TrainingRow:
    turn = Turn(start_s=start_s, end_s=end_s, instruction="What?", answer="That.")
    return TrainingRow(video=str(video), turns=(turn,), kind="dense", source="test", **changes)  # type: ignore[arg-type]


def whole(video: Path | str, kind: str = "offline", **changes: object) -> TrainingRow:
    turns = (Turn(instruction="What?", answer="That."),)
    return TrainingRow(video=str(video), turns=turns, kind=kind, source="test", **changes)  # type: ignore[arg-type]


def test_dense_rows_have_one_frame_per_second_from_before_the_first_word(clips: list[Clip]) -> None:
    frames = READER.read(dense(clips[0].path, time_range=(4.0, 7.0)))
    np.testing.assert_allclose(frames.times, [3.0, 4.0, 5.0, 6.0, 7.0], atol=0.11)
    assert frames.pictures.shape == (5, 32, 32, 3)
    assert len({picture.tobytes() for picture in frames.pictures}) > 1


def test_all_dense_rows_of_a_video_have_the_same_frames(clips: list[Clip]) -> None:
    frames = READER.read(dense(clips[0].path, 9.0, 12.0, time_range=(5.0, 12.0)))
    np.testing.assert_allclose(frames.times, np.arange(4.0, 13.0), atol=0.11)
    assert (frames.times <= 12.0).all()
    between = READER.read(dense(clips[0].path, 9.0, 12.95, time_range=(5.7, 12.95)))
    np.testing.assert_array_equal(between.times, frames.times)


def test_a_row_that_was_not_cut_has_the_newest_frames(clips: list[Clip]) -> None:
    frames = FrameReader(size=32, frames_per_second=1.0, max_frames=2).read(dense(clips[0].path, 9.0, 12.0))
    np.testing.assert_allclose(frames.times, np.arange(9.0, 13.0), atol=0.11)


def test_other_videos_are_sampled_evenly(clips: list[Clip]) -> None:
    frames = READER.read(whole(clips[0].path))
    length_s = clips[0].world.duration_s
    np.testing.assert_allclose(frames.times, (np.arange(6) + 0.5) * length_s / 6, atol=0.11)


def test_a_seek_gives_the_same_frames_as_decoding(clips: list[Clip]) -> None:
    seconds = FrameReader(size=32, frames_per_second=1.0, max_frames=100).read(
        dense(clips[0].path, 0.0, 15.0)
    )
    late = READER.read(dense(clips[0].path, 14.0, 15.0, time_range=(14.0, 15.0)))
    np.testing.assert_array_equal(late.times, seconds.times[-3:])
    np.testing.assert_array_equal(late.pictures, seconds.pictures[-3:])


def test_a_still_picture_is_one_frame_and_a_text_row_none(tmp_path: Path) -> None:
    path = tmp_path / "red.png"
    Image.new("RGB", (50, 40), (200, 10, 10)).save(path)
    frames = READER.read(whole(path, "image"))
    assert frames.pictures.shape == (1, 32, 32, 3)
    assert np.abs(frames.pictures.reshape(-1, 3).mean(0) - (200, 10, 10)).max() < 4
    assert READER.read(whole("", "text")).pictures.shape == (0, 32, 32, 3)


def test_files_are_read_with_fsspec(clips: list[Clip]) -> None:
    there = READER.read(dense(clips[0].path))
    np.testing.assert_array_equal(READER.read(dense(f"file://{clips[0].path}")).pictures, there.pictures)


def test_the_cache_gives_the_same_frames_until_the_file_changes(clips: list[Clip], tmp_path: Path) -> None:
    video = tmp_path / "clip.mp4"
    video.write_bytes(clips[0].path.read_bytes())
    reader = FrameReader(size=32, frames_per_second=1.0, max_frames=6, cache=FrameCache(tmp_path / "cache"))
    first, again = reader.read(dense(video)), reader.read(dense(video))
    np.testing.assert_array_equal(first.pictures, again.pictures)
    np.testing.assert_array_equal(first.times, again.times)
    video.write_bytes(clips[1].path.read_bytes())
    other = reader.read(dense(video))
    assert not np.array_equal(first.pictures, other.pictures)
    assert len(list((tmp_path / "cache").iterdir())) == 2


@pytest.mark.parametrize(
    ("name", "reason"),
    [("absent.mp4", "missing file"), ("empty.mp4", "empty file"), ("noise.mp4", "corrupt video"),
     ("cut.mp4", "corrupt video"), (".", "empty file")],
)  # fmt: skip
def test_bad_files_raise_their_reason(name: str, reason: str, clips: list[Clip], tmp_path: Path) -> None:
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "noise.mp4").write_bytes(np.random.default_rng(0).bytes(5000))
    (tmp_path / "cut.mp4").write_bytes(clips[0].path.read_bytes()[:20_000])
    with pytest.raises(BadRow) as error:
        READER.read(dense(tmp_path / name))
    assert error.value.reason == reason
    assert str(tmp_path) in error.value.detail


def test_captions_outside_the_clip_are_refused(clips: list[Clip]) -> None:
    with pytest.raises(BadRow) as error:
        READER.read(dense(clips[0].path, 90.0, 95.0))
    assert error.value.reason == "outside the clip"
    with pytest.raises(BadRow, match="outside the clip"):
        READER.read(whole(clips[0].path, time_range=(90.0, 95.0)))


def test_training_refuses_held_out_videos_under_any_name(held_out: list[Clip], tmp_path: Path) -> None:
    copy = tmp_path / "mine.mp4"
    copy.write_bytes(held_out[0].path.read_bytes())
    assert len(READER.read(dense(copy)).times)  # evaluation reads it
    with pytest.raises(BadRow, match="is held out for tests"):
        replace(READER, for_training=True).read(dense(copy))


def test_a_photograph_of_a_telephone_is_read(tmp_path: Path) -> None:
    Image.new("RGB", (4032, 3024), (10, 200, 10)).save(tmp_path / "photo.jpg")
    frames = READER.read(whole(tmp_path / "photo.jpg", "image"))
    assert np.abs(frames.pictures.reshape(-1, 3).mean(0) - (10, 200, 10)).max() < 4


def test_many_readers_share_a_cache(clips: list[Clip], tmp_path: Path) -> None:
    reader = replace(READER, cache=FrameCache(tmp_path / "cache"))
    rows = [dense(clips[0].path, 4.0 + number % 2, 7.0) for number in range(24)]
    with ThreadPoolExecutor(8) as pool:
        read = list(pool.map(reader.read, rows))
    for row, frames in zip(rows, read, strict=True):
        wanted = READER.read(row)
        np.testing.assert_array_equal(frames.times, wanted.times)
        assert np.abs(frames.pictures.astype(int) - wanted.pictures).mean() < 4  # they went through JPEG
    assert {path.suffix for path in (tmp_path / "cache").iterdir()} == {".npz"}


def test_interleaved_rows_have_their_pictures_in_order(tmp_path: Path) -> None:
    colours = [(200, 10, 10), (10, 200, 10), (10, 10, 200)]
    for number, colour in enumerate(colours):
        Image.new("RGB", (50 + number, 40), colour).save(tmp_path / f"{number}.png")
    turns = (Turn(start_s=1.0, end_s=2.0, instruction="What?", answer="That."),)
    pictures = tuple(str(tmp_path / f"{number}.png") for number in range(3))
    row = TrainingRow(video="", pictures=pictures, turns=turns, kind="interleaved", source="test")
    frames = READER.read(row)
    np.testing.assert_array_equal(frames.times, [0.0, 1.0, 2.0])
    for picture, colour in zip(frames.pictures, colours, strict=True):
        assert np.abs(picture.reshape(-1, 3).mean(0) - colour).max() < 4
