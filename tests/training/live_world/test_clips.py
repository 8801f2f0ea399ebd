"""Reading clips: frames with their times and labels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.training.sample_worlds import STORY
from training.live_world.clip_frames import decode_all
from training.live_world.clips import (
    Clip,
    dataset_labels,
    find_clips,
    frame_times,
    place_labels,
    read_frames,
)
from training.live_world.world import COLOURS, HAPPENINGS, THINGS

RATE = 5.0
RED, BLUE, WHITE = (1 + list(COLOURS).index(c) for c in ("red", "blue", "white"))
DOG, CAT, CAR = (1 + THINGS.index(t) for t in ("dog", "cat", "car"))


def test_a_folder_without_clips_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="holds no live-world clips"):
        find_clips(tmp_path)


@pytest.mark.parametrize("number", [0, 1])
def test_frames_have_the_times_that_go_with_them(clips: list[Clip], number: int) -> None:
    times, pictures = read_frames(clips[number].path, RATE, 96, phase_s=0.1 * number)
    assert (pictures.shape, pictures.dtype) == ((100, 96, 96, 3), np.uint8)
    np.testing.assert_allclose(times, frame_times(number, 100, RATE))
    np.testing.assert_allclose(times, 0.1 * number + 0.2 * np.arange(100))


def test_frames_show_the_moment_of_their_time(clips: list[Clip]) -> None:
    """A place's picture changes when its truth does: at the frame whose time says so, and not one earlier."""
    for clip in clips:
        times, pictures = read_frames(clip.path, 10.0, 96)
        shown = pictures.reshape(len(times), 3, 32, 3, 32, 3).astype(float)
        for event in clip.world.events:
            row, column = divmod(event.thing.place, 3)
            change = np.abs(np.diff(shown[:, row, :, column], axis=0)).mean((1, 2, 3))
            first = int(np.searchsorted(times, event.start_s))
            assert change[first - 1] > 3 * np.median(change)


def test_all_frames_of_a_data_set_are_read_once(clips: list[Clip], tmp_path: Path) -> None:
    made = decode_all(clips, RATE, 48, tmp_path / "frames.npy")
    assert made.shape == (2, 100, 48, 48, 3)
    for number, clip in enumerate(clips):
        _, pictures = read_frames(clip.path, RATE, 48, phase_s=0.1 * number)
        np.testing.assert_array_equal(made[number], pictures)
    gone = [Clip(path=Path("gone.mp4"), world=c.world) for c in clips]
    np.testing.assert_array_equal(decode_all(gone, RATE, 48, tmp_path / "frames.npy"), made)


def test_frames_of_other_clips_are_refused(clips: list[Clip], tmp_path: Path) -> None:
    decode_all(clips[:1], RATE, 24, tmp_path / "frames.npy")
    with pytest.raises(
        ValueError, match=r"got frames of shape \(1, 100, 24, 24, 3\), wanted \(2, 100, 24, 24, 3\)"
    ):
        decode_all(clips, RATE, 24, tmp_path / "frames.npy")


def test_what_there_is_to_see_in_each_place() -> None:
    quiet = place_labels(STORY, 1.0)
    assert quiet[0].tolist() == [DOG, RED, 0]
    assert quiet[8].tolist() == [CAT, BLUE, 0]
    assert not quiet[1:8].any()
    appearing = place_labels(STORY, 2.5)
    assert appearing[4].tolist() == [CAR, WHITE, 1 + HAPPENINGS.index("appears")]
    leaving = place_labels(STORY, 11.5)
    assert leaving[8].tolist() == [CAT, BLUE, 1 + HAPPENINGS.index("leaves")]
    assert not place_labels(STORY, 13.5)[8].any()


def test_truths_of_a_data_set_go_with_its_frames(clips: list[Clip]) -> None:
    truths = dataset_labels(clips, 100, RATE)
    assert truths.shape == (2, 100, 9, 3)
    np.testing.assert_array_equal(truths[1, 7], place_labels(clips[1].world, 1.5))
