"""Decoded frames to pixels."""

from __future__ import annotations

import av
import numpy as np
import pytest

from model.network.pixels import to_pixels


def frame(height: int, width: int, colour: tuple[int, int, int], kind: str = "rgb24") -> av.VideoFrame:
    picture = np.full((height, width, 3), colour, np.uint8)
    return av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format=kind)


@pytest.mark.parametrize(("height", "width"), [(480, 640), (50, 60), (96, 96), (20, 400), (1080, 1920)])
@pytest.mark.parametrize("kind", ["rgb24", "yuv420p", "yuvj420p", "gray"])
def test_any_picture_becomes_a_square_of_its_colour(height: int, width: int, kind: str):
    colour = (120, 120, 120) if kind == "gray" else (200, 40, 90)
    pixels = to_pixels(frame(height, width, colour, kind), 96)
    assert (pixels.shape, pixels.dtype) == ((96, 96, 3), np.uint8)
    assert np.abs(pixels.astype(int) - colour).max() <= 6


def test_the_whole_picture_is_kept_and_areas_are_averaged():
    picture = np.zeros((64, 128, 3), np.uint8)
    picture[:, 64:] = 255  # right half white
    picture[::2, :64, 0] = 200  # left half: fine red lines, which must blend and not alias
    pixels = to_pixels(av.VideoFrame.from_ndarray(picture, format="rgb24"), 16)
    assert (pixels[:, 8:] == 255).all()
    assert np.abs(pixels[:, :8, 0].astype(int) - 100).max() <= 2
    assert (pixels[:, :8, 1:] == 0).all()


def test_a_picture_as_wide_as_the_square_is_averaged_too():
    picture = np.zeros((64, 16, 3), np.uint8)
    picture[::2] = 200  # every other line
    for given in (picture, picture.transpose(1, 0, 2).copy()):
        pixels = to_pixels(av.VideoFrame.from_ndarray(given, format="rgb24"), 16)
        assert np.abs(pixels.astype(int) - 100).max() <= 2


def test_a_small_picture_grows_smoothly():
    picture = np.zeros((8, 8, 3), np.uint8)
    picture[:, 4:] = 200
    row = to_pixels(av.VideoFrame.from_ndarray(picture, format="rgb24"), 64)[32, :, 0].astype(int)
    assert np.abs(np.diff(row)).max() < 60  # an edge of 200 in one step would be blocks
    assert row[0] == 0
    assert row[-1] == 200


def test_the_same_frame_gives_the_same_pixels():
    random = np.random.default_rng(0).integers(0, 256, (90, 160, 3), dtype=np.uint8)
    given = av.VideoFrame.from_ndarray(random, format="rgb24").reformat(format="yuv420p")
    assert np.array_equal(to_pixels(given, 96), to_pixels(given, 96))
