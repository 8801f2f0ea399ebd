"""`streamchat cameras`: the cameras that can be asked about."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from services.cli.chat_client import Camera, ChatClient
from services.cli.table import text_table

HEAD = ("camera", "state", "frames/s", "newest frame", "frames kept", "name", "problem")


def list_cameras(url: str, *, key: str = "") -> int:
    """Print the cameras as a table. Raises ChatRefused or ChatLost."""
    with ChatClient(url, key) as client:
        cameras = client.cameras()
    if not cameras:
        print("no cameras yet; add one with `streamchat publish SOURCE --camera ID`", file=sys.stderr)
        return 0
    print(camera_table(cameras))
    return 0


def camera_table(cameras: Sequence[Camera]) -> str:
    """One row per camera."""
    rows = [
        (
            camera.id,
            camera.state,
            f"{camera.fps:.1f}",
            f"{camera.newest_frame_age_ms:.0f} ms ago" if camera.num_frames else "none",
            f"{camera.num_frames}/{camera.capacity}",
            camera.name if camera.name != camera.id else "",
            camera.problem,
        )
        for camera in cameras
    ]
    return text_table([HEAD, *rows])
