"""The picture feed reads once for all who look on, and only while somebody does."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import pytest

from services.access.api_keys import make_key
from services.access.caller import Caller
from services.gateway.metrics import GatewayMetrics
from services.gateway.picture_feed import MAX_VIEWERS, PictureFeed, Viewer
from services.gateway.store_threads import StoreThreads
from services.messages.api_error import ApiError
from services.messages.video import Picture
from tests.services.adapters.memory_frame_store import MemoryFrameStore
from tests.services.served_gateway import frame


class CountingStore(MemoryFrameStore):
    """Counts reads."""

    def __init__(self) -> None:
        super().__init__()
        self.num_reads = 0

    def newer_pictures(self, after: Mapping[str, str], *, block_s: float) -> list[Picture]:
        self.num_reads += 1
        return super().newer_pictures(after, block_s=block_s)


def picture(camera: str, number: int) -> Picture:
    one = frame(camera, number)
    return Picture(camera=camera, frame_id=one.frame_id, captured_s=one.captured_s, jpeg=one.jpeg)


async def test_a_viewer_gets_the_newest_picture_each_camera_only() -> None:
    viewer = Viewer(None, Caller())
    for number in range(3):
        viewer.offer(picture("a", number))
        viewer.offer(picture("b", number))
    newest = [await viewer.next(), await viewer.next()]
    assert {(picture.camera, picture.frame_id.split("-")[1]) for picture in newest} == {
        ("a", "2"),
        ("b", "2"),
    }
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(viewer.next(), 0.01)


async def test_many_viewers_cost_one_reader_and_none_costs_none() -> None:
    store = CountingStore()
    store.append(frame("a", 1), capacity=4)
    threads = StoreThreads(store)
    feed = PictureFeed(threads, GatewayMetrics())
    viewers = [feed.add_viewer("a", Caller()) for _ in range(10)]
    for viewer in viewers:
        await viewer.next()
    store.append(frame("a", 2), capacity=4)
    for viewer in viewers:
        assert (await viewer.next()).frame_id.endswith("-2")
    assert store.num_reads <= 3
    for viewer in viewers:
        await feed.remove_viewer(viewer)
    await asyncio.sleep(0)
    num_reads = store.num_reads
    store.append(frame("a", 3), capacity=4)
    late = feed.add_viewer("a", Caller())
    assert (await late.next()).frame_id.endswith("-3")
    assert num_reads <= store.num_reads <= num_reads + 2
    await feed.remove_viewer(late)
    threads.close()


async def test_one_key_leaves_room_for_the_others() -> None:
    threads = StoreThreads(MemoryFrameStore())
    feed = PictureFeed(threads, GatewayMetrics())
    greedy, other = (Caller(make_key(name, role="ask", cameras=("*",))[1]) for name in ("greedy", "other"))
    viewers = [feed.add_viewer(None, greedy) for _ in range(MAX_VIEWERS // 2)]
    with pytest.raises(ApiError, match="too_many_viewers"):
        feed.add_viewer(None, greedy)
    viewers.append(feed.add_viewer(None, other))
    for viewer in viewers:
        await feed.remove_viewer(viewer)
    threads.close()


async def test_places_are_bounded() -> None:
    store = MemoryFrameStore()
    threads = StoreThreads(store)
    feed = PictureFeed(threads, GatewayMetrics())
    viewers = [feed.add_viewer(None, Caller()) for _ in range(MAX_VIEWERS)]
    with pytest.raises(ApiError, match="too_many_viewers"):
        feed.add_viewer(None, Caller())
    for viewer in viewers:
        await feed.remove_viewer(viewer)
    threads.close()
