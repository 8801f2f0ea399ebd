"""Following FIFOs: each frame once, in order, across cameras that come and go and a store that is lost for a while."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping

import pytest

from services.llm_decoder.frame_follower import FrameFollower
from services.messages.video import Frame
from services.ports.frame_store import StoreLost
from tests.services.adapters.memory_frame_store import MemoryFrameStore


class Shelf:
    """Where delivered frames are put; lets a test wait for them."""

    def __init__(self) -> None:
        self.frames: list[Frame] = []
        self._changed = threading.Condition()

    def put(self, frames: object) -> None:
        with self._changed:
            self.frames.extend(frames)  # type: ignore[arg-type]
            self._changed.notify_all()

    def wait_for(self, enough: Callable[[list[str]], bool]) -> list[str]:
        with self._changed:
            assert self._changed.wait_for(lambda: enough(self.ids), timeout=10)
            return self.ids

    @property
    def ids(self) -> list[str]:
        return [f"{frame.camera}/{frame.frame_id}" for frame in self.frames]


class Store(MemoryFrameStore):
    """A store that can be lost."""

    lost = False

    def newer(self, after: Mapping[str, str], *, block_s: float) -> list[Frame]:
        if self.lost:
            raise StoreLost("gone")
        return super().newer(after, block_s=block_s)


def append(store: MemoryFrameStore, camera: str, number: int) -> None:
    frame = Frame(
        camera=camera,
        frame_id=f"{number}-0",
        captured_s=time.time(),
        shape=(1, 1),
        dtype="float32",
        visual_tokens=bytes(4),
        jpeg=b"",
    )
    store.append(frame, capacity=4)


@pytest.fixture
def shelf() -> Shelf:
    return Shelf()


@pytest.fixture
def store() -> Store:
    return Store()


@pytest.fixture
def follower(store: Store, shelf: Shelf) -> Iterator[FrameFollower]:
    follower = FrameFollower(store, shelf.put)
    follower.start()
    yield follower
    follower.close()
    assert not follower.alive


def test_frames_come_once_and_in_order(follower: FrameFollower, store: Store, shelf: Shelf) -> None:
    append(store, "a", 1)
    follower.follow("a", "1-0")
    for number in (2, 3):
        append(store, "a", number)
    assert shelf.wait_for(lambda ids: len(ids) == 2) == ["a/2-0", "a/3-0"]
    follower.follow("b")
    append(store, "b", 7)
    assert shelf.wait_for(lambda ids: len(ids) == 3)[-1] == "b/7-0"


def test_a_forgotten_camera_is_not_followed(follower: FrameFollower, store: Store, shelf: Shelf) -> None:
    follower.follow("a")
    append(store, "a", 1)
    shelf.wait_for(lambda ids: len(ids) == 1)
    follower.unfollow("a")
    follower.follow("b")
    append(store, "a", 2)
    append(store, "b", 1)
    ids = shelf.wait_for(lambda ids: "b/1-0" in ids)
    append(store, "b", 2)
    ids = shelf.wait_for(lambda ids: "b/2-0" in ids)
    assert ids.count("a/2-0") <= 1  # the read that was under way may have brought it
    append(store, "a", 3)
    append(store, "b", 3)
    assert "a/3-0" not in shelf.wait_for(lambda ids: "b/3-0" in ids)


def test_a_lost_store_is_waited_for(follower: FrameFollower, store: Store, shelf: Shelf) -> None:
    follower.follow("a")
    append(store, "a", 1)
    shelf.wait_for(lambda ids: len(ids) == 1)
    store.lost = True
    append(store, "a", 2)
    deadline = time.monotonic() + 10
    while not follower.store_lost and time.monotonic() < deadline:
        pass
    store.lost = False
    assert shelf.wait_for(lambda ids: len(ids) == 2) == ["a/1-0", "a/2-0"]
