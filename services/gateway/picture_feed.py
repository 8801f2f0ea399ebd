"""New pictures of the cameras for people who look on: read from the store once, however many they are."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from urllib.parse import quote

from services.access.authentication import Caller
from services.gateway.metrics import GatewayMetrics
from services.gateway.store_threads import StoreThreads
from services.messages.api_error import ApiError
from services.messages.video import Frame
from services.ports.frame_store import FrameStore

MAX_VIEWERS = 64
BLOCK_S = 0.5  # a camera that appears is seen within this time
RETRY_S = 0.5

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """A frame as people see it."""

    camera: str
    frame_id: str
    captured_s: float
    jpeg: bytes


class Viewer:
    """Holds each camera's newest picture until its owner takes it: a slow one misses pictures."""

    def __init__(self, camera: str | None, caller: Caller) -> None:
        self._camera = camera
        self._caller = caller
        self._pictures: dict[str, Picture] = {}
        self._some = asyncio.Event()

    def wants(self, camera: str) -> bool:
        """Whether this viewer looks at the camera; one without a camera looks at all that it may see."""
        return self._camera in (None, camera) and self._caller.sees(camera)

    def offer(self, picture: Picture) -> None:
        """Replace the camera's picture that still waits, if any."""
        if self.wants(picture.camera):
            self._pictures.pop(picture.camera, None)
            self._pictures[picture.camera] = picture
            self._some.set()

    async def next(self) -> Picture:
        """The picture that waits longest."""
        await self._some.wait()
        picture = self._pictures.pop(next(iter(self._pictures)))
        if not self._pictures:
            self._some.clear()
        return picture


def picture_of(frame: Frame) -> Picture:
    """The frame without its visual tokens."""
    return Picture(camera=frame.camera, frame_id=frame.frame_id, captured_s=frame.captured_s, jpeg=frame.jpeg)


class PictureFeed:
    """Follows the store while somebody looks on."""

    def __init__(self, store: StoreThreads, metrics: GatewayMetrics) -> None:
        self._store = store
        self._metrics = metrics
        self._viewers: set[Viewer] = set()
        self._newest: dict[str, Picture] = {}
        self._follower: asyncio.Task[None] | None = None

    def enter(self, camera: str | None, caller: Caller) -> Viewer:
        """A place to look on at one camera, or at all; raises ApiError 429 when no place is left."""
        if len(self._viewers) >= MAX_VIEWERS:
            message = f"{MAX_VIEWERS} people look on already: try again later"
            raise ApiError(429, "too_many_viewers", message, retry_after_s=5)
        viewer = Viewer(camera, caller)
        for picture in self._newest.values():
            viewer.offer(picture)
        self._viewers.add(viewer)
        self._metrics.viewers.add(1)
        if self._follower is None:
            self._follower = asyncio.create_task(self._follow())
        return viewer

    async def leave(self, viewer: Viewer) -> None:
        """Give the place back; the last one to leave stops the reading."""
        if viewer in self._viewers:
            self._viewers.remove(viewer)
            self._metrics.viewers.add(-1)
        if not self._viewers:
            await self.close()

    async def close(self) -> None:
        """Stop reading."""
        follower, self._follower = self._follower, None
        self._newest.clear()
        if follower is not None:
            follower.cancel()
            with suppress(asyncio.CancelledError):
                await follower

    async def _follow(self) -> None:
        while True:
            try:
                await self._look()
            except ApiError as error:  # the store is away: pictures stand still until it is back
                log.warning("pictures stand still: %s", error.message)
                await asyncio.sleep(RETRY_S)

    async def _look(self) -> None:
        states = await self._store.ask(lambda store: store.cameras())
        watched = [
            state.camera for state in states if any(viewer.wants(state.camera) for viewer in self._viewers)
        ]
        for camera in set(self._newest) - set(watched):
            del self._newest[camera]
        for camera in set(watched) - set(self._newest):
            self._show(await self._store.ask(partial(newest_frames, camera=camera)))
        after = {camera: picture.frame_id for camera, picture in self._newest.items()}
        if not after:
            await asyncio.sleep(BLOCK_S)
            return
        self._show(await self._store.ask(lambda store: store.newer(after, block_s=BLOCK_S), blocking=True))

    def _show(self, frames: list[Frame]) -> None:
        for frame in frames:
            picture = picture_of(frame)
            self._newest[frame.camera] = picture
            for viewer in self._viewers:
                viewer.offer(picture)


def newest_frames(store: FrameStore, camera: str) -> list[Frame]:
    """The camera's newest frame, if it has one."""
    return store.newest(camera, 1)


async def multipart(viewer: Viewer, boundary: str) -> AsyncGenerator[bytes, None]:
    """Pictures as parts that follow each other; each part is complete as soon as it is sent.

    The boundary that ends a part is sent with it: browsers show a part only when they have seen its end.
    """
    yield f"--{boundary}\r\n".encode()
    while True:
        picture = await viewer.next()
        headers = {
            "Content-Type": "image/jpeg",
            "Content-Length": str(len(picture.jpeg)),
            "X-Camera": quote(picture.camera, safe=""),
            "X-Frame-Id": picture.frame_id,
            "X-Captured-S": f"{picture.captured_s:.3f}",
        }
        head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        yield head.encode() + b"\r\n" + picture.jpeg + f"\r\n--{boundary}\r\n".encode()
