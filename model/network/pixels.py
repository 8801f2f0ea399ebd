"""From a decoded video frame to the vision encoder's input: the one way, in training and in serving."""

from __future__ import annotations

import av
import numpy as np
import numpy.typing as npt
from av.video.reformatter import Interpolation


def to_pixels(frame: av.VideoFrame, size: int) -> npt.NDArray[np.uint8]:
    """The whole picture, scaled to a square: uint8 RGB [size, size, 3].

    Shrinking averages areas (no aliasing from large pictures), growing is bicubic. Bit-exact arithmetic, so that a
    frame gives the same pixels on every machine.
    """
    smaller = frame.width >= size and frame.height >= size
    method = Interpolation.AREA if smaller else Interpolation.BICUBIC
    scaled = frame.reformat(
        width=size,
        height=size,
        format="rgb24",
        interpolation=method | Interpolation.ACCURATE_RND | Interpolation.BITEXACT,
        threads=1,
    )
    return np.asarray(scaled.to_ndarray(), np.uint8)
