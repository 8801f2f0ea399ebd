"""Publish a video file as a live camera of a running StreamChat, at the video's own pace."""

from __future__ import annotations

import asyncio
import sys
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType

import av
import httpx
from av.error import FFmpegError

from model.config import PROJECT_ROOT

MAX_DELAY_S = 30.0  # a camera that is further behind its video is lost
TOLERANCE_S = (
    0.1  # half a frame period at 5 frames/s: the newest frame may be this much before the wanted time
)


class CameraLost(RuntimeError):
    """A camera that cannot be asked about. The message says why."""


def packet_times(video: Path) -> list[float]:
    """Seconds from the first packet's picture, by packet number, as `streamchat publish` counts packets.

    Exact for a video that is published as it is. A video that is encoded anew may be off by its reordering depth.
    Raises CameraLost when there is no video in the file.
    """
    times: list[float] = []
    try:
        with av.open(str(video)) as container:
            packets = (p for p in container.demux(video=0) if p.size and p.pts is not None)
            times += [float((p.pts or 0) * p.time_base) for p in packets]
    except (FFmpegError, OSError, ValueError, IndexError) as error:
        raise CameraLost(f"{video} cannot be read as video: {error}") from error
    if not times:
        raise CameraLost(f"{video} holds no video")
    return [time_s - times[0] for time_s in times]


class CameraPublisher:
    """`async with CameraPublisher(...) as camera`: publishes the video until the block ends."""

    def __init__(self, url: str, kafka: str, video: Path, camera: str, key: str = "none") -> None:
        """`url`, `key`: of the server. `kafka`: host:port of its broker. `camera`: an id that nobody else uses."""
        base = url.rstrip("/").removesuffix("/v1")
        headers = {"Authorization": f"Bearer {key}"}
        self.http = httpx.AsyncClient(base_url=base, headers=headers, timeout=60, trust_env=False)
        self.kafka, self.video, self.camera = kafka, video, camera
        self.times: list[float] = []

    async def __aenter__(self) -> CameraPublisher:
        self.times = await asyncio.to_thread(packet_times, self.video)
        command = [sys.executable, "-m", "services.cli.main", "publish", str(self.video.resolve())]
        command += ["--camera", self.camera, "--kafka", self.kafka]
        self.process = await asyncio.create_subprocess_exec(
            *command, cwd=PROJECT_ROOT, stderr=asyncio.subprocess.PIPE
        )
        self.last_line = asyncio.create_task(self._read_stderr())
        self.started_s = time.monotonic()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with suppress(ProcessLookupError):  # it may have ended by itself
            self.process.terminate()
        await self.process.wait()
        await self.last_line
        await self.http.aclose()

    async def _read_stderr(self) -> str:
        """Read stderr to its end and return its last line: the error, if the process failed."""
        assert self.process.stderr is not None
        last = ""
        async for line in self.process.stderr:
            last = line.decode(errors="replace").strip() or last
        return last

    def time_of(self, frame_id: str) -> float:
        """Time of a frame in the video, in seconds. A frame's id ends with the number of its packet."""
        return self.times[min(int(frame_id.partition("-")[2]), len(self.times) - 1)]

    async def wait_until(self, time_s: float) -> None:
        """Wait until the camera's newest frame has reached a time of the video; CameraLost when it never does."""
        if time_s > self.times[-1]:
            raise CameraLost(
                f"{self.video.name} ends at second {self.times[-1]:.1f}; wanted second {time_s:g}"
            )
        while time.monotonic() < self.started_s + time_s + MAX_DELAY_S:
            reply = await self.http.get(f"/v1/cameras/{self.camera}")
            newest = reply.json()["newest_frame_id"] if reply.status_code == 200 else None
            if newest is not None and self.time_of(newest) >= time_s - TOLERANCE_S:
                return
            if self.process.returncode:
                raise CameraLost(await self.last_line)
            await asyncio.sleep(0.05)
        raise CameraLost(
            f"camera {self.camera} has not reached second {time_s:g} within {MAX_DELAY_S:g} s after it was due"
        )
