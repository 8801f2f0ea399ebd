"""How far a picture has to be turned before people see it upright.

Phones and some cameras store what the sensor saw, and beside it how the device was held: as a display matrix in MP4 and
MOV, as EXIF orientation in JPEG, or in the stream itself.
"""

from __future__ import annotations

import av
import numpy as np

QUARTER_TURNS = (0, 90, 180, 270)


def rotation_of(picture: av.VideoFrame) -> int:
    """Degrees clockwise by which a decoded picture has to be turned: 0, 90, 180 or 270."""
    return round(-picture.rotation / 90) * 90 % 360  # FFmpeg counts counterclockwise


def turned(picture: av.VideoFrame, rotation: int) -> av.VideoFrame:
    """The picture, turned clockwise by a multiple of 90 degrees."""
    if rotation % 360 == 0:
        return picture
    pixels = np.asarray(picture.reformat(format="rgb24", threads=1).to_ndarray(), np.uint8)
    return av.VideoFrame.from_ndarray(np.rot90(pixels, -rotation // 90).copy(), format="rgb24")
