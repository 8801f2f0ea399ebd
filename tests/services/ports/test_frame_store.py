"""One contract for every FrameStore, held against the twin in memory, a real store, and one behind TLS and an ACL."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from services.adapters.redis_frame_store import RedisFrameStore
from services.local.embedded_servers import Store
from services.messages.video import CameraNote, Frame, Picture
from services.ports.frame_store import FrameStore, StoreLost, fps, parse_frame_id
from services.processes.polling import wait_until
from tests.secured_servers import SecuredServers, certificates
from tests.services.adapters.memory_frame_store import MemoryFrameStore

START_MS = 1_700_000_000_000


def secured_store(servers: SecuredServers, password: str = "") -> RedisFrameStore:
    return RedisFrameStore(
        servers.redis_url,
        username=servers.username,
        password=password or servers.password,
        ca_file=str(servers.authority),
    )


@pytest.fixture(params=["memory", "redis", "secured redis"])
def store(
    request: pytest.FixtureRequest, store_server: Store, secured: SecuredServers
) -> Iterator[FrameStore]:
    made: dict[str, Callable[[], FrameStore]] = {
        "memory": MemoryFrameStore,
        "redis": lambda: RedisFrameStore(store_server.url),
        "secured redis": lambda: secured_store(secured),
    }
    store = made[request.param]()
    yield store
    store.close()


def test_a_store_behind_a_door_needs_all_that_opens_it(secured: SecuredServers, tmp_path: Path) -> None:
    other, _ = certificates(tmp_path)  # of an authority that signed nothing here
    port = secured.redis_url.rsplit(":", 1)[1]
    for refused in (
        secured_store(secured, "wrong"),
        RedisFrameStore(secured.redis_url, ca_file=str(secured.authority)),
        RedisFrameStore(secured.redis_url, username=secured.username, password=secured.password),
        RedisFrameStore(
            secured.redis_url, username=secured.username, password=secured.password, ca_file=str(other)
        ),
        RedisFrameStore(f"redis://127.0.0.1:{port}", username=secured.username, password=secured.password),
    ):
        with closing(refused), pytest.raises(StoreLost) as lost:
            refused.ping()
        assert secured.password not in str(lost.value)


def frame(camera: str, n: int, *, size: int = 2) -> Frame:
    """Frame n of a camera that makes five a second."""
    return Frame(
        camera=camera,
        frame_id=f"{START_MS + 200 * n}-{n}",
        captured_s=(START_MS + 200 * n) / 1000,
        shape=(size, 3),
        dtype="float16",
        visual_tokens=bytes([n % 256]) * (size * 6),
        jpeg=f"picture {n}".encode(),
    )


def tokens_of(frames: list[Frame]) -> list[Frame]:
    """The frames as a decoder reads them."""
    return [replace(one, jpeg=b"") for one in frames]


def pictures_of(frames: list[Frame]) -> list[Picture]:
    """The frames as people look at them."""
    return [
        Picture(camera=one.camera, frame_id=one.frame_id, captured_s=one.captured_s, jpeg=one.jpeg)
        for one in frames
    ]


def fill(store: FrameStore, camera: str, num_frames: int, *, capacity: int = 8) -> list[Frame]:
    frames = [frame(camera, n) for n in range(num_frames)]
    for one in frames:
        assert store.append(one, capacity=capacity)
    return frames


def test_keeps_exactly_the_newest(store: FrameStore, unique: str) -> None:
    frames = fill(store, unique, 20, capacity=8)
    assert store.newest(unique, 100) == tokens_of(frames[-8:])
    assert store.newest(unique, 3) == tokens_of(frames[-3:])
    assert store.newest(unique, 0) == []
    assert store.newer_pictures({unique: "0-0"}, block_s=0) == pictures_of(frames[-8:])
    assert store.newest_picture(unique) == pictures_of(frames)[-1]


def test_a_replay_is_refused(store: FrameStore, unique: str) -> None:
    frames = fill(store, unique, 3)
    assert not store.append(frames[-1], capacity=8)
    assert not store.append(frames[0], capacity=8)
    assert store.newest(unique, 9) == tokens_of(frames)
    assert len(store.newer_pictures({unique: "0-0"}, block_s=0)) == 3
    assert getattr(store.camera(unique), "newest_frame_id", None) == frames[-1].frame_id


def test_ids_are_ordered_as_numbers(store: FrameStore, unique: str) -> None:
    for frame_id in ("9-5", "9-10", "10-0", "100-0"):
        one = replace(frame(unique, 0), frame_id=frame_id)
        assert store.append(one, capacity=8)
    assert [one.frame_id for one in store.newer({unique: "9-5"}, block_s=0)] == ["9-10", "10-0", "100-0"]


@pytest.mark.parametrize("frame_id", ["", "1", "a-b", "-1-0", "1-0 ", "1" * 30 + "-0", "١-٠"])
def test_a_bad_id_is_named(store: FrameStore, unique: str, frame_id: str) -> None:
    one = replace(frame(unique, 0), frame_id=frame_id)
    with pytest.raises(ValueError, match="wanted '<milliseconds>-<sequence>'"):
        store.append(one, capacity=8)
    with pytest.raises(ValueError, match="wanted '<milliseconds>-<sequence>'"):
        store.newer({unique: frame_id}, block_s=0)
    assert store.picture(unique, frame_id) is None


def test_the_first_id_is_never_taken(store: FrameStore, unique: str) -> None:
    assert not store.append(replace(frame(unique, 0), frame_id="0-0"), capacity=8)


def test_a_capacity_is_at_least_one(store: FrameStore, unique: str) -> None:
    with pytest.raises(ValueError, match="capacity: got 0"):
        store.append(frame(unique, 0), capacity=0)


def test_newer_follows_every_camera(store: FrameStore, unique: str) -> None:
    one, two, none = f"{unique}-1", f"{unique}-2", f"{unique}-3"
    first, second = fill(store, one, 5), fill(store, two, 3)
    after = {one: first[2].frame_id, two: "0-0", none: "0-0"}
    found = store.newer(after, block_s=5.0)
    assert [f for f in found if f.camera == one] == tokens_of(first[3:])
    assert [f for f in found if f.camera == two] == tokens_of(second)
    assert len(found) == 5
    assert store.newer({}, block_s=0.0) == []


def test_newer_gives_all_that_was_missed(store: FrameStore, unique: str) -> None:
    cameras = [f"{unique}-{i}" for i in range(40)]
    for camera in cameras:
        fill(store, camera, 12, capacity=10)
    found = store.newer(dict.fromkeys(cameras, "0-0"), block_s=1.0)
    for camera in cameras:
        assert [f.frame_id for f in found if f.camera == camera] == [
            frame(camera, n).frame_id for n in range(2, 12)
        ]


def test_newer_waits_for_the_first_frame_and_no_longer(store: FrameStore, unique: str) -> None:
    known = fill(store, unique, 2)[-1].frame_id
    began = time.monotonic()
    assert store.newer({unique: known}, block_s=0.15) == []
    assert 0.14 <= time.monotonic() - began < 2.0
    found: list[Frame] = []
    reader = threading.Thread(target=lambda: found.extend(store.newer({unique: known}, block_s=30.0)))
    reader.start()
    store.append(frame(unique, 2), capacity=8)
    reader.join(10.0)
    assert found == tokens_of([frame(unique, 2)])


def test_one_picture_by_its_id(store: FrameStore, unique: str) -> None:
    frames = fill(store, unique, 10, capacity=4)
    assert store.picture(unique, frames[-2].frame_id) == pictures_of(frames)[-2]
    assert store.picture(unique, frames[0].frame_id) is None
    assert store.picture(f"{unique}-other", frames[-2].frame_id) is None
    assert store.newest_picture(f"{unique}-other") is None


def test_state_of_a_camera(store: FrameStore, unique: str) -> None:
    fill(store, unique, 11, capacity=6)
    state = next(state for state in store.cameras() if state.camera == unique)
    assert (state.state, state.num_frames, state.capacity) == ("live", 6, 6)
    assert state.fps == pytest.approx(5.0)
    assert state.newest_frame_id == frame(unique, 10).frame_id
    assert state.newest_captured_s == frame(unique, 10).captured_s


def test_a_capacity_can_change(store: FrameStore, unique: str) -> None:
    fill(store, unique, 10, capacity=6)
    store.append(frame(unique, 10), capacity=2)
    state = next(state for state in store.cameras() if state.camera == unique)
    assert (state.num_frames, state.capacity) == (2, 2)
    assert state.fps == pytest.approx(5.0)


def test_private_cameras_are_not_listed(store: FrameStore, unique: str) -> None:
    fill(store, f"clip-{unique}", 2)
    fill(store, unique, 1)
    names = [state.camera for state in store.cameras()]
    assert unique in names
    assert f"clip-{unique}" not in names
    assert names == sorted(names)
    assert len(store.newest(f"clip-{unique}", 5)) == 2


def test_an_expired_camera_is_forgotten_and_may_return(store: FrameStore, unique: str) -> None:
    fill(store, unique, 3)
    assert store.append(frame(unique, 3), capacity=8, keep_s=0.05)
    assert wait_until(lambda: store.newest(unique, 1) == [], 5.0)
    assert store.newest_picture(unique) is None
    assert store.camera(unique) is None
    assert unique not in [state.camera for state in store.cameras()]
    assert store.append(frame(unique, 0), capacity=8)
    assert unique in [state.camera for state in store.cameras()]


def test_a_camera_is_announced_for_a_while(store: FrameStore, unique: str) -> None:
    other = f"{unique}-other"
    note = CameraNote(name="Entrée", problem="picture: too large")
    assert store.notes([unique]) == {}
    store.announce({unique: note, other: CameraNote()}, 60.0)
    store.announce({}, 60.0)
    assert store.notes([unique, other, "none"]) == {unique: note, other: CameraNote()}
    assert store.notes().items() >= {unique: note, other: CameraNote()}.items()
    assert unique not in [state.camera for state in store.cameras()]  # it has no frame
    store.announce({unique: note}, 0.05)
    assert wait_until(lambda: unique not in store.notes(), 5.0)
    assert other in store.notes()


def test_a_camera_belongs_to_the_first_topic_while_it_sends(store: FrameStore, unique: str) -> None:
    other = f"{unique}-other"
    assert store.bind({}, 60.0) == {}
    assert store.bind({unique: "cameras", other: "yard"}, 60.0) == {unique: "cameras", other: "yard"}
    assert store.bind({unique: "garden", other: "yard"}, 60.0) == {unique: "cameras", other: "yard"}
    assert store.bind({unique: "cameras"}, 0.3) == {unique: "cameras"}
    assert wait_until(lambda: store.bind({unique: "garden"}, 60.0) == {unique: "garden"}, 5.0)
    assert store.bind({unique: "cameras"}, 60.0) == {unique: "garden"}


def test_a_stranger_does_not_put_off_the_end_of_a_binding(store: FrameStore, unique: str) -> None:
    store.bind({unique: "cameras"}, 0.3)

    def is_free() -> bool:
        return store.bind({unique: "garden"}, 60.0) == {unique: "garden"}

    assert wait_until(is_free, 5.0)


def test_one_of_many_that_ask_at_once_gets_a_camera(store: FrameStore, unique: str) -> None:
    topics = [f"topic-{n}" for n in range(8)]
    with ThreadPoolExecutor(len(topics)) as pool:
        found = [*pool.map(lambda topic: store.bind({unique: topic}, 60.0)[unique], topics)]
    assert len(set(found)) == 1


def test_an_expiry_is_put_off_by_a_later_one(store: FrameStore, unique: str) -> None:
    store.append(frame(unique, 0), capacity=8, keep_s=0.2)
    store.append(frame(unique, 1), capacity=1, keep_s=60.0)
    other = f"{unique}-other"
    store.append(frame(other, 0), capacity=8, keep_s=0.3)
    assert wait_until(lambda: store.newest(other, 1) == [], 5.0)
    assert len(store.newest(unique, 1)) == 1


@pytest.mark.parametrize("name", ["front door", "a}b{c", "ünïcode", "with:colon", "*", "x" * 300, "{", "%7D"])
def test_any_name_is_a_camera(store: FrameStore, unique: str, name: str) -> None:
    camera = f"{unique}{name}"
    frames = fill(store, camera, 2)
    assert store.newer({camera: "0-0"}, block_s=1.0) == tokens_of(frames)
    assert camera in [state.camera for state in store.cameras()]


def test_writers_and_readers_in_threads(store: FrameStore, unique: str) -> None:
    seen: list[Frame] = []

    def follow() -> None:
        last = "0-0"
        while len(seen) < 60:
            for one in store.newer({unique: last}, block_s=1.0):
                last = one.frame_id
                seen.append(one)

    reader = threading.Thread(target=follow, daemon=True)
    reader.start()
    frames = fill(store, unique, 60, capacity=60)
    reader.join(10.0)
    assert seen == tokens_of(frames)


def test_silent_after_a_while(store_server: Store, unique: str) -> None:
    for store in (
        MemoryFrameStore(silent_after_s=0.05),
        RedisFrameStore(store_server.url, silent_after_s=0.05),
    ):
        fill(store, unique, 2)

        def silent(store: FrameStore = store) -> bool:
            return [s.state for s in store.cameras() if s.camera == unique] == ["silent"]

        assert wait_until(silent, 5.0)
        store.append(frame(unique, 2), capacity=8)
        assert not silent()
        store.close()


def test_frame_rate_of_a_fifo_without_a_span() -> None:
    assert fps((1.0, 1.0), 5) == 0.0
    assert fps((1.0, 3.0), 1) == 0.0
    assert fps((1.0, 3.0), 5) == 2.0
    assert parse_frame_id("12-3") == (12, 3)
