"""A video file as a live camera of a running StreamChat: published at its own pace, and followed in its own time."""

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

JOIN_S = 30.0  # a camera that is this much behind its video is an error
EARLY_S = (
    0.1  # half a period of the frames looked at: the newest one may be this much before the wanted moment
)


class CameraLost(RuntimeError):
    """A broadcast that cannot be asked about; the message says why."""


def packet_times(video: Path) -> list[float]:
    """Seconds from the first packet's picture, by packet number, as `streamchat publish` counts them.

    Exact for a video that is published as it is; one that has to be encoded anew may be off by its reordering depth.
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


class Broadcast:
    """`async with Broadcast(...) as camera`: the video runs from then on."""

    def __init__(self, url: str, kafka: str, video: Path, camera: str, key: str = "none") -> None:
        """`url`, `key`: the server's; `kafka`: host:port of the broker it reads; `camera`: an id of its own."""
        base = url.rstrip("/").removesuffix("/v1")
        headers = {"Authorization": f"Bearer {key}"}
        self.http = httpx.AsyncClient(base_url=base, headers=headers, timeout=60, trust_env=False)
        self.kafka, self.video, self.camera = kafka, video, camera
        self.times: list[float] = []

    async def __aenter__(self) -> Broadcast:
        self.times = await asyncio.to_thread(packet_times, self.video)
        command = [sys.executable, "-m", "services.cli.main", "publish", str(self.video.resolve())]
        command += ["--camera", self.camera, "--kafka", self.kafka]
        self.publisher = await asyncio.create_subprocess_exec(
            *command, cwd=PROJECT_ROOT, stderr=asyncio.subprocess.PIPE
        )
        self.words = asyncio.create_task(self._listen())
        self.started_s = time.monotonic()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with suppress(ProcessLookupError):  # it may have ended by itself
            self.publisher.terminate()
        await self.publisher.wait()
        await self.words
        await self.http.aclose()

    async def _listen(self) -> str:
        """Its last line on stderr, which is its error if it ends by one."""
        assert self.publisher.stderr is not None
        last = ""
        async for line in self.publisher.stderr:
            last = line.decode(errors="replace").strip() or last
        return last

    def time_of(self, frame_id: str) -> float:
        """Where the video was at a frame, in seconds: a frame's id ends with its packet's number."""
        return self.times[min(int(frame_id.partition("-")[2]), len(self.times) - 1)]

    async def wait_until(self, time_s: float) -> None:
        """Until the camera's newest frame is of that time in the video; raises CameraLost when it never will be."""
        if time_s > self.times[-1]:
            raise CameraLost(
                f"{self.video.name} is over at second {self.times[-1]:.1f}; wanted second {time_s:g}"
            )
        while time.monotonic() < self.started_s + time_s + JOIN_S:
            reply = await self.http.get(f"/v1/cameras/{self.camera}")
            if reply.status_code == 200 and self.time_of(reply.json()["newest_frame_id"]) >= time_s - EARLY_S:
                return
            if self.publisher.returncode:
                raise CameraLost(await self.words)
            await asyncio.sleep(0.05)
        raise CameraLost(
            f"camera {self.camera} showed nothing of second {time_s:g} within {JOIN_S:g} s of it"
        )
