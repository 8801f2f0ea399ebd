"""Messages between processes about video: packets, frames, cameras and clips.

This module is light: no torch, no numpy, no client library.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

CODECS = ("h264", "hevc", "mjpeg")


@dataclass(frozen=True, slots=True, kw_only=True)
class VideoPacket:
    """One encoded access unit, as it left the camera's encoder."""

    camera: str
    captured_s: float  # wall clock at the camera; milliseconds on Kafka
    codec: str  # one of CODECS
    keyframe: bool  # parameter sets travel in-band with every keyframe
    pts: int
    time_base: tuple[int, int]  # seconds per pts unit, as a fraction
    seq: int  # counts a camera's packets from 0, since its publisher started
    data: bytes
    rotation: int | None = None  # degrees clockwise to turn the picture; None: as the picture itself says
    name: str = ""  # what people call the camera; empty: by its id


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """One entry of a camera's FIFO: the vision encoder's output and the picture it was made from.

    The store gives the two apart: its frames have no JPEG, and its pictures have no visual tokens.
    """

    camera: str
    frame_id: str  # "<captured_ms>-<seq>": ordered as (int, int), never going back for a camera
    captured_s: float
    shape: tuple[int, int]  # [P visual tokens, width of the vision encoder]
    dtype: str  # "float32", "float16" or "bfloat16"
    visual_tokens: bytes  # raw little-endian array of that shape and dtype
    jpeg: bytes = b""


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """The picture that a frame was made from, for people."""

    camera: str
    frame_id: str
    captured_s: float
    jpeg: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class VisualTokens:
    """The vision encoder's output for one picture: an array [P, width] as raw bytes."""

    shape: tuple[int, int]
    dtype: str
    data: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class CameraState:
    """The state of one camera, as `GET /v1/cameras` shows it."""

    camera: str
    state: Literal["live", "silent"]  # silent: no frame for longer than the settings allow
    fps: float  # frames taken into the FIFO per second, over the FIFO's span
    newest_frame_id: str
    newest_captured_s: float
    num_frames: int  # FIFO fill
    capacity: int  # FIFO size


@dataclass(frozen=True, slots=True, kw_only=True)
class CameraNote:
    """What is known of a camera that sends, even without a frame."""

    name: str = ""  # what people call it; empty: by its id
    problem: str = ""  # for people, while there is one


@dataclass(frozen=True, slots=True, kw_only=True)
class PlayedClip:
    """A clip that was played into a private FIFO, so that questions about it can be answered."""

    camera: str  # "clip-<uuid>": private, and removed soon
    num_frames: int
    end_s: float  # capture time of its last frame, on the clip's own clock


class ClipRefused(Exception):
    """A clip that cannot be played, and the reason for its sender. It can be pickled."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(status, code, message)
        self.status = status
        self.code = code
        self.message = message
