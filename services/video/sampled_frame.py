"""A frame that was sampled from video, in the two forms that are kept of it: pixels to encode, a picture to show."""

from __future__ import annotations

import io
from dataclasses import dataclass

import av
import numpy as np
from av.video.reformatter import Interpolation
from PIL import Image

from model.network.pixels import to_pixels
from services.messages.video import Frame, VisualTokens
from services.video.rotation import turned

JPEG_WIDTH = 480  # pixels at most
JPEG_QUALITY = 75


@dataclass(frozen=True, slots=True, kw_only=True)
class SampledFrame:
    """A frame to be encoded."""

    frame_id: str  # "<captured_ms>-<seq>"
    captured_s: float
    pixels: bytes  # uint8 RGB [S, S, 3], S the vision encoder's image size
    picture: av.VideoFrame | bytes  # for people: at most 480 pixels wide, or that as a JPEG

    def jpeg(self) -> bytes:
        """The picture for people. Compressed only on request, because many frames are dropped before."""
        return self.picture if isinstance(self.picture, bytes) else to_jpeg(self.picture)

    def to_frame(self, camera: str, tokens: VisualTokens) -> Frame:
        """The entry of the camera's FIFO, with the vision encoder's output for this frame."""
        return Frame(
            camera=camera,
            frame_id=self.frame_id,
            captured_s=self.captured_s,
            shape=tokens.shape,
            dtype=tokens.dtype,
            visual_tokens=tokens.data,
            jpeg=self.jpeg(),
        )


def sample_frame(
    picture: av.VideoFrame, captured_s: float, seq: int, image_size: int, *, rotation: int = 0
) -> SampledFrame:
    """A decoded picture as a frame to be encoded, turned clockwise by `rotation` degrees: 0, 90, 180 or 270."""
    pixels = to_pixels(picture, image_size)
    return SampledFrame(
        frame_id=f"{round(captured_s * 1000)}-{seq}",
        captured_s=captured_s,
        pixels=(np.rot90(pixels, -rotation // 90) if rotation else pixels).tobytes(),
        picture=turned(shrink(picture, sideways=rotation % 180 != 0), rotation),
    )


def shrink(picture: av.VideoFrame, *, sideways: bool = False) -> av.VideoFrame:
    """The picture in its own colour format, which has fewer values than RGB, and at most 480 pixels wide.

    `sideways`: it will be turned by a quarter, so its height becomes the width.
    """
    scale = min(1.0, JPEG_WIDTH / (picture.height if sideways else picture.width))
    return picture.reformat(
        width=max(1, round(picture.width * scale)),
        height=max(1, round(picture.height * scale)),
        interpolation=Interpolation.AREA,
        threads=1,
    )


def to_jpeg(picture: av.VideoFrame) -> bytes:
    """A picture as a JPEG."""
    out = io.BytesIO()
    pixels = picture.reformat(format="rgb24", threads=1).to_ndarray()
    Image.fromarray(pixels).save(out, "JPEG", quality=JPEG_QUALITY)
    return out.getvalue()
