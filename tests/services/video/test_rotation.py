"""A picture that was taken sideways is seen upright, whatever says so."""

from __future__ import annotations

import io
from dataclasses import replace

import av
import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from services.clip_player.clip_decoder import ClipLimits, decode_clip
from services.frame_fifo.camera_decoder import CameraDecoder
from services.messages.video import VideoPacket
from services.video.sampled_frame import SampledFrame, sample_frame
from tests.services.h264 import camera_packets, clip, encoded, held_sideways, jpeg_held_sideways

SIZE = 48
RED, GREEN, BLUE, WHITE = (220, 30, 30), (30, 200, 30), (30, 30, 220), (230, 230, 230)
LIMITS = ClipLimits(
    frames_per_second=5.0, capacity=16, image_size=SIZE, max_pixels=4096 * 2304, max_bytes=2**20
)


def corners(width: int = 160, height: int = 120) -> npt.NDArray[np.uint8]:
    """A picture with another colour in each quarter: red and green on top, blue and white below."""
    image = np.zeros((height, width, 3), np.uint8)
    half = height // 2, width // 2
    image[: half[0], : half[1]], image[: half[0], half[1] :] = RED, GREEN
    image[half[0] :, : half[1]], image[half[0] :, half[1] :] = BLUE, WHITE
    return image


def colours(image: npt.NDArray[np.uint8]) -> list[tuple[int, int, int]]:
    """The colours of the quarters in reading order, to the nearest of the four."""
    height, width = image.shape[:2]
    places = [(y, x) for y in (height // 4, 3 * height // 4) for x in (width // 4, 3 * width // 4)]
    return [nearest(image[place].astype(int)) for place in places]


def nearest(pixel: npt.NDArray[np.int_]) -> tuple[int, int, int]:
    return min((RED, GREEN, BLUE, WHITE), key=lambda colour: int(np.abs(pixel - colour).sum()))


def seen(frame: SampledFrame) -> tuple[tuple[int, int], list[tuple[int, int, int]]]:
    """The size of the JPEG, and the quarters, which are the same in the encoder's pixels."""
    jpeg = np.asarray(Image.open(io.BytesIO(frame.jpeg())))
    pixels = np.frombuffer(frame.pixels, np.uint8).reshape(SIZE, SIZE, 3)
    assert colours(jpeg) == colours(pixels)
    return (jpeg.shape[1], jpeg.shape[0]), colours(jpeg)


TURNED = {
    0: ((160, 120), [RED, GREEN, BLUE, WHITE]),
    90: ((120, 160), [BLUE, RED, WHITE, GREEN]),
    180: ((160, 120), [WHITE, BLUE, GREEN, RED]),
    270: ((120, 160), [GREEN, WHITE, RED, BLUE]),
}


@pytest.mark.parametrize("rotation", [0, 90, 180, 270])
def test_a_frame_is_turned_clockwise(rotation: int) -> None:
    picture = av.VideoFrame.from_ndarray(corners(), format="rgb24")
    assert seen(sample_frame(picture, 1.0, 0, SIZE, rotation=rotation)) == TURNED[rotation]


def test_a_turned_picture_is_at_most_480_pixels_wide() -> None:
    picture = av.VideoFrame.from_ndarray(corners(1600, 1200), format="rgb24")
    size, _ = seen(sample_frame(picture, 1.0, 0, SIZE, rotation=90))
    assert size == (480, 640)


def decoded(packet: VideoPacket) -> SampledFrame:
    return CameraDecoder(5.0, SIZE, 10**7).decode(packet).frames[0]


def test_the_header_of_a_packet_turns_its_picture() -> None:
    packet = camera_packets(encoded(1))[0]
    upright, turned = decoded(packet), decoded(replace(packet, rotation=90))
    assert Image.open(io.BytesIO(upright.jpeg())).size == (160, 120)
    assert Image.open(io.BytesIO(turned.jpeg())).size == (120, 160)


@pytest.mark.parametrize(("orientation", "rotation"), [(1, 0), (3, 180), (6, 90), (8, 270)])
def test_exif_of_motion_jpeg_turns_its_picture_unless_the_header_says_otherwise(
    orientation: int, rotation: int
) -> None:
    data = jpeg_held_sideways(corners(), orientation)
    packet = replace(camera_packets(encoded(1, codec="mjpeg"), codec="mjpeg")[0], data=data)
    assert seen(decoded(packet)) == TURNED[rotation]
    assert seen(decoded(replace(packet, rotation=0))) == TURNED[0]


@pytest.mark.parametrize(("orientation", "rotation"), [(1, 0), (3, 180), (6, 90), (8, 270)])
def test_exif_turns_a_picture_that_comes_with_a_question(orientation: int, rotation: int) -> None:
    (frame,) = decode_clip(jpeg_held_sideways(corners(), orientation), "image", LIMITS, end_s=1.0)
    assert seen(frame) == TURNED[rotation]


def test_exif_mirrors_a_picture_too() -> None:
    (frame,) = decode_clip(jpeg_held_sideways(corners(), 2), "image", LIMITS, end_s=1.0)
    assert seen(frame)[1] == [GREEN, RED, WHITE, BLUE]


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_an_orientation_that_does_not_exist_turns_nothing(orientation: int) -> None:
    (frame,) = decode_clip(jpeg_held_sideways(corners(), orientation), "image", LIMITS, end_s=1.0)
    assert seen(frame) == TURNED[0]


def test_the_display_matrix_turns_a_clip_that_comes_with_a_question() -> None:
    frames = decode_clip(held_sideways(clip(15)), "video", LIMITS, end_s=1.0)
    assert {Image.open(io.BytesIO(frame.jpeg())).size for frame in frames} == {(120, 160)}
