"""New pictures of the cameras for viewers. They are read from the store once, however many viewers there are."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator
from contextlib import suppress
from urllib.parse import quote

from services.access.caller import Caller
from services.access.shared_places import SharedPlaces
from services.gateway.metrics import GatewayMetrics
from services.gateway.store_threads import StoreThreads
from services.messages.api_error import ApiError
from services.messages.video import Picture

MAX_VIEWERS = 64
BLOCK_S = 0.5  # a new camera is noticed within this time
RETRY_S = 0.5
LIST_EVERY_S = 0.5

log = logging.getLogger(__name__)


class Viewer:
    """Keeps each camera's newest picture until the viewer takes it. A slow viewer misses pictures."""

    def __init__(self, camera: str | None, caller: Caller) -> None:
        self.camera = camera  # None: all
        self._caller = caller
        self.key_id = caller.key_id
        self._pictures: dict[str, Picture] = {}
        self._has_pictures = asyncio.Event()

    def wants(self, camera: str) -> bool:
        """Whether the viewer watches the camera. A viewer without a camera watches all that it may see."""
        return self.camera in (None, camera) and self._caller.can_see(camera)

    def offer(self, picture: Picture) -> None:
        """Replace the camera's picture, if the viewer watches it."""
        if self.wants(picture.camera):
            self._pictures.pop(picture.camera, None)
            self._pictures[picture.camera] = picture
            self._has_pictures.set()

    async def next(self) -> Picture:
        """Wait for a picture; returns the one that has waited longest."""
        await self._has_pictures.wait()
        picture = self._pictures.pop(next(iter(self._pictures)))
        if not self._pictures:
            self._has_pictures.clear()
        return picture


class PictureFeed:
    """Reads new frames from the store while there are viewers."""

    def __init__(self, store: StoreThreads, metrics: GatewayMetrics) -> None:
        self._store = store
        self._metrics = metrics
        self._viewers: set[Viewer] = set()
        self._places = SharedPlaces(
            MAX_VIEWERS, what="streams of pictures", code="too_many_viewers", retry_after_s=5
        )
        self._newest: dict[str, Picture] = {}
        self._names: set[str] = set()  # of all cameras, as last listed
        self._listed_at = float("-inf")  # monotonic
        self._reading: asyncio.Task[None] | None = None

    def add_viewer(self, camera: str | None, caller: Caller) -> Viewer:
        """Add a viewer of one camera, or (None) of all. Raises ApiError 429 if there are too many viewers."""
        self._places.take(caller.key_id)
        viewer = Viewer(camera, caller)
        for picture in self._newest.values():
            viewer.offer(picture)
        self._viewers.add(viewer)
        self._metrics.viewers.add(1)
        if self._reading is None:
            self._reading = asyncio.create_task(self._read())
        return viewer

    async def remove_viewer(self, viewer: Viewer) -> None:
        """Remove a viewer. Without viewers, nothing is read."""
        if viewer in self._viewers:
            self._viewers.remove(viewer)
            self._places.give_back(viewer.key_id)
            self._metrics.viewers.add(-1)
        if not self._viewers:
            await self.close()

    async def close(self) -> None:
        """Stop reading."""
        reading, self._reading = self._reading, None
        self._newest.clear()
        if reading is not None:
            reading.cancel()
            with suppress(asyncio.CancelledError):
                await reading

    async def _read(self) -> None:
        while True:
            try:
                await self._read_new_pictures()
            except ApiError as error:  # no new pictures until the store is back
                log.warning("no new pictures: %s", error.message)
                await asyncio.sleep(RETRY_S)

    async def _read_new_pictures(self) -> None:
        watched = await self._watched()
        for camera in set(self._newest) - watched:
            del self._newest[camera]
        for camera in watched - set(self._newest):
            picture = await self._store.call(lambda store, camera=camera: store.newest_picture(camera))
            self._publish([picture] if picture else [])
        after = {camera: picture.frame_id for camera, picture in self._newest.items()}
        if not after:
            await asyncio.sleep(BLOCK_S)
            return
        self._publish(
            await self._store.call(lambda store: store.newer_pictures(after, block_s=BLOCK_S), blocking=True)
        )

    async def _watched(self) -> set[str]:
        """The cameras that the viewers watch. All are listed only for a viewer of all, and not with every picture."""
        names = {viewer.camera for viewer in self._viewers}
        if None not in names:
            return {name for name in names if name is not None}
        if time.monotonic() - self._listed_at >= LIST_EVERY_S:
            states = await self._store.call(lambda store: store.cameras())
            self._names = {state.camera for state in states}
            self._listed_at = time.monotonic()
        return {camera for camera in self._names if any(viewer.wants(camera) for viewer in self._viewers)}

    def _publish(self, pictures: list[Picture]) -> None:
        for picture in pictures:
            self._newest[picture.camera] = picture
            for viewer in self._viewers:
                viewer.offer(picture)


async def multipart(viewer: Viewer, boundary: str) -> AsyncGenerator[bytes, None]:
    """The viewer's pictures as parts of a multipart body.

    The boundary after a part is sent with the part, because browsers show a part only after its end.
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
