"""What only the real store can show: its keys, damaged entries, and being killed."""

from __future__ import annotations

import os
import signal
import threading
import time
import zlib
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from typing import Any

import pytest
from redis import Redis
from redis.client import Pipeline

from services.adapters import redis_connection, redis_entries, redis_frame_store
from services.adapters.redis_connection import SOCKET_TIMEOUT_S
from services.adapters.redis_entries import BLOCK_S
from services.adapters.redis_frame_store import RedisFrameStore
from services.local.embedded_servers import HOST, Store, start_store
from services.messages.video import CameraNote, Frame
from services.ports.frame_store import StoreFull, StoreLost
from tests.services.adapters.redis_servers import CuttingAddress


def frame(camera: str, n: int, num_bytes: int = 24) -> Frame:
    return Frame(
        camera=camera,
        frame_id=f"{1000 + n}-0",
        captured_s=1.0 + n / 1000,
        shape=(num_bytes // 2, 1),
        dtype="bfloat16",
        visual_tokens=os.urandom(num_bytes),
        jpeg=b"jpeg",
    )


def key_of(camera: str, kind: str) -> str:
    return f"streamchat:any:{{{zlib.crc32(camera.encode()) % 64}}}:{camera}:{kind}"


def tokens_of(frames: list[Frame]) -> list[Frame]:
    return [replace(one, jpeg=b"") for one in frames]


@pytest.fixture
def client(store_server: Store) -> Iterator[Redis]:
    connection = Redis.from_url(store_server.url)
    yield connection
    connection.close()


@pytest.fixture
def frames(store_server: Store) -> Iterator[RedisFrameStore]:
    store = RedisFrameStore(store_server.url)
    yield store
    store.close()


@pytest.fixture
def own_server() -> Iterator[Store]:
    """A store of the test's own, to be killed."""
    server = start_store(max_bytes=8 * 2**20)
    yield server
    server.stop()


def test_the_stream_holds_exactly_its_capacity(frames: RedisFrameStore, client: Redis, unique: str) -> None:
    for n in range(150):  # an approximate MAXLEN would keep whole nodes of 100
        frames.append(frame(unique, n), capacity=32)
    ids: dict[str, list[bytes]] = {}
    for kind in ("frames", "pictures", "times"):
        entries: Any = client.xrange(key_of(unique, kind))
        ids[kind] = [entry_id for entry_id, _ in entries]
    assert len(ids["frames"]) == 32
    assert ids["frames"] == ids["pictures"] == ids["times"]


def test_listing_cameras_reads_no_frame(frames: RedisFrameStore, client: Redis, unique: str) -> None:
    for n in range(8):
        frames.append(frame(unique, n, 590_000), capacity=8)
    before = client.info("stats")["total_net_output_bytes"]
    assert unique in [state.camera for state in frames.cameras()]
    assert client.info("stats")["total_net_output_bytes"] - before < 100_000


def test_a_damaged_entry_is_skipped_and_counted_once(
    frames: RedisFrameStore, client: Redis, unique: str, caplog: pytest.LogCaptureFixture
) -> None:
    good = [frame(unique, 0), frame(unique, 2)]
    stream = key_of(unique, "frames")
    frames.append(good[0], capacity=8)
    client.xadd(stream, {"frame": b"SCFR nonsense"}, id="1001-0")
    frames.append(good[1], capacity=8)
    client.xadd(stream, {"other": b"field"}, id="1003-0")
    assert frames.newest(unique, 8) == tokens_of(good)
    assert frames.newer({unique: "0-0"}, block_s=1.0) == tokens_of(good)
    assert frames.num_damaged == 2
    assert "frame 1001-0 of camera" in caplog.text


def test_a_damaged_newest_entry_does_not_make_a_reader_spin(
    frames: RedisFrameStore, client: Redis, unique: str
) -> None:
    client.xadd(key_of(unique, "frames"), {"frame": b"nonsense"}, id="1-0")
    assert frames.newer({unique: "0-0"}, block_s=0) == []
    before = client.info("commandstats")["cmdstat_xread"]["calls"]
    began = time.monotonic()
    assert frames.newer({unique: "0-0"}, block_s=0.3) == []
    assert time.monotonic() - began >= 0.29
    assert client.info("commandstats")["cmdstat_xread"]["calls"] - before < 100


def test_a_blocking_read_never_outlasts_the_socket() -> None:
    assert BLOCK_S * 2 <= SOCKET_TIMEOUT_S


def test_a_wait_longer_than_the_sockets_timeout(
    frames: RedisFrameStore, unique: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_entries, "BLOCK_S", 0.05)  # several blocking reads in one call
    found: list[Frame] = []
    reader = threading.Thread(target=lambda: found.extend(frames.newer({unique: "0-0"}, block_s=20.0)))
    reader.start()
    writer = frame(unique, 1)
    reader.join(0.3)
    assert reader.is_alive()
    frames.append(writer, capacity=4)
    reader.join(5.0)
    assert found == tokens_of([writer])


def test_a_killed_store_is_lost_and_found_again(own_server: Store, unique: str) -> None:
    frames = RedisFrameStore(own_server.url)
    frames.append(frame(unique, 1), capacity=4)
    lost: list[type[Exception]] = []

    def wait() -> None:
        try:
            frames.newer({unique: "1001-0"}, block_s=30.0)
        except StoreLost as error:
            lost.append(type(error))

    reader = threading.Thread(target=wait)
    reader.start()
    os.kill(own_server.process.pid, signal.SIGKILL)
    reader.join(10.0)
    assert lost == [StoreLost]
    for call in (
        lambda: frames.append(frame(unique, 2), capacity=4),
        lambda: frames.newest(unique, 1),
        lambda: frames.newer({unique: "0-0"}, block_s=0.1),
        lambda: frames.picture(unique, "1001-0"),
        frames.cameras,
        lambda: frames.camera(unique),
        frames.ping,
    ):
        began = time.monotonic()
        with pytest.raises(
            StoreLost, match=rf"the store at 127\.0\.0\.1:{own_server.port}/0 cannot be reached"
        ):
            call()
        assert time.monotonic() - began < 1.0
    own_server.restart()
    frames.ping()
    assert frames.append(frame(unique, 3), capacity=4)
    assert [state.newest_frame_id for state in frames.cameras()] == ["1003-0"]
    frames.close()


def test_a_restart_between_two_calls_is_not_noticed(own_server: Store, unique: str) -> None:
    frames = RedisFrameStore(own_server.url)
    frames.append(frame(unique, 1), capacity=4)
    own_server.restart()
    assert frames.append(frame(unique, 1), capacity=4)  # its connection was dead
    frames.close()


def test_a_frozen_store_is_lost_within_the_timeouts(
    own_server: Store, unique: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_connection, "SOCKET_TIMEOUT_S", 0.5)
    frames = RedisFrameStore(own_server.url)
    frames.ping()
    os.kill(own_server.process.pid, signal.SIGSTOP)
    began = time.monotonic()
    with pytest.raises(StoreLost):
        frames.append(frame(unique, 1), capacity=4)
    assert time.monotonic() - began < 5.0
    os.kill(own_server.process.pid, signal.SIGCONT)
    time.sleep(redis_connection.REST_S)
    frames.append(frame(unique, 2), capacity=4)
    assert frames.newest(unique, 1)[0].frame_id == "1002-0"
    frames.close()


def test_a_full_store_refuses_loudly(own_server: Store, unique: str) -> None:
    frames = RedisFrameStore(own_server.url)
    for n in range(5):
        frames.append(frame(unique, n, 600_000), capacity=100)
    with pytest.raises(StoreFull, match="is full and takes no frames"):
        frames.append(frame(unique, 5, 8_000_000), capacity=100)
    assert len(frames.newest(unique, 2)) == 2  # reading goes on
    frames.close()


def test_no_password_in_messages() -> None:
    frames = RedisFrameStore("redis://user:secret@127.0.0.1:9/0")
    with pytest.raises(StoreLost) as caught:
        frames.ping()
    assert "secret" not in str(caught.value)
    frames.close()


def test_no_key_stays_for_ever(own_server: Store, unique: str) -> None:
    frames = RedisFrameStore(own_server.url)
    frames.append(frame(unique, 1), capacity=4, keep_s=30.0)
    frames.append(frame(f"clip-{unique}", 1), capacity=4, keep_s=300.0)
    frames.announce({unique: CameraNote()}, 30.0)
    frames.bind({unique: "cameras"}, 30.0)
    with closing(Redis(port=own_server.port)) as client:
        names: Any = client.keys("*")
        ends = {name.decode(): client.ttl(name) for name in names}
    assert len(ends) == 11  # three streams each, a note, its topic, three lists
    assert min(ends.values()) > 0
    assert max(end for key, end in ends.items() if f":{unique}:" in key) <= 30
    frames.close()


@pytest.mark.parametrize("num_bytes", [100, 400_000, 500_000, 600_500, 613_200])
def test_a_frame_whose_writing_is_cut_off_leaves_nothing(
    own_server: Store, unique: str, num_bytes: int
) -> None:
    address = CuttingAddress(own_server.port, num_bytes)  # of the frame's 613,300
    with closing(address), closing(RedisFrameStore(f"redis://{HOST}:{address.port}/0")) as frames:
        frames.ping()
        address.start()
        with pytest.raises(StoreLost):
            frames.append(
                replace(frame(f"clip-{unique}", 1, 600_000), jpeg=bytes(13_000)), capacity=4, keep_s=30.0
            )
    with closing(Redis(port=own_server.port)) as client:
        assert client.keys("*") == []


def test_a_full_store_drops_the_oldest_clips_first(
    own_server: Store, unique: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_frame_store, "CLIP_SPARED_S", 0.0)
    with closing(RedisFrameStore(own_server.url)) as frames:
        for n in range(20):  # 12 MB of clips in a store of 8 MB
            assert frames.append(frame(f"clip-{unique}-{n}", n, 600_000), capacity=4, keep_s=300.0)
        assert frames.append(frame(unique, 1, 600_000), capacity=4)
        assert len(frames.newest(unique, 4)) == 1
        assert frames.newest(f"clip-{unique}-0", 4) == []
        assert len(frames.newest(f"clip-{unique}-19", 4)) == 1


def test_a_clip_that_is_being_read_is_spared(own_server: Store, unique: str) -> None:
    with closing(RedisFrameStore(own_server.url)) as frames:

        def fill() -> None:
            for n in range(20):
                frames.append(frame(f"clip-{unique}", n, 600_000), capacity=100, keep_s=300.0)

        with pytest.raises(StoreFull):
            fill()
        assert len(frames.newest(f"clip-{unique}", 100)) >= 5


def num_commands(client: Redis) -> int:
    return int(client.info("stats")["total_commands_processed"])


def test_one_camera_is_one_command_and_a_list_is_a_few_round_trips(
    own_server: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    with closing(RedisFrameStore(own_server.url)) as frames, closing(Redis(port=own_server.port)) as client:
        client.config_set("maxmemory", 64 * 2**20)
        for n in range(1000):
            frames.append(frame(f"camera-{n:04}", n), capacity=4)
        before = num_commands(client)
        state = frames.camera("camera-0500")
        assert state is not None
        assert num_commands(client) - before == 2  # with the one that counts
        trips: list[int] = []
        execute = Pipeline.execute
        monkeypatch.setattr(Pipeline, "execute", lambda p, **o: trips.append(len(p)) or execute(p, **o))
        before = num_commands(client)
        assert len(frames.cameras()) == 1000
        assert num_commands(client) - before <= 64 + 1003
        assert len(trips) == 1 + 10
        assert frames.cameras(["camera-0500", "none"]) == [state]


def test_pictures_are_read_without_visual_tokens(frames: RedisFrameStore, client: Redis, unique: str) -> None:
    made = [replace(frame(unique, n, 590_000), jpeg=bytes(13_000)) for n in range(4)]
    for one in made:
        frames.append(one, capacity=8)
    before = client.info("stats")["total_net_output_bytes"]
    pictures = frames.newer_pictures({unique: "0-0"}, block_s=0.0)
    assert [picture.frame_id for picture in pictures] == [one.frame_id for one in made]
    assert frames.newest_picture(unique) == pictures[-1] == frames.picture(unique, made[-1].frame_id)
    assert client.info("stats")["total_net_output_bytes"] - before < 100_000


def test_a_replay_changes_nothing_that_people_see(frames: RedisFrameStore, unique: str) -> None:
    for n in (5, 6):
        frames.append(frame(unique, n), capacity=4)
    before = frames.camera(unique)
    assert not frames.append(frame(unique, 5), capacity=4)
    assert frames.camera(unique) == before


def test_a_frame_that_was_stored_before_the_connection_died_counts_as_stored(
    own_server: Store, unique: str
) -> None:
    address = CuttingAddress(own_server.port, 0, replies=True)
    with closing(address), closing(RedisFrameStore(f"redis://{HOST}:{address.port}/0")) as frames:
        frames.ping()
        address.start(times=1)
        assert frames.append(frame(unique, 1), capacity=4)
        assert [one.frame_id for one in frames.newest(unique, 4)] == ["1001-0"]


def test_two_encoders_never_see_each_others_frames(store_server: Store, unique: str) -> None:
    old = RedisFrameStore(store_server.url, encoder="old")
    new = RedisFrameStore(store_server.url, encoder="new")
    old.append(frame(unique, 1), capacity=4)
    new.append(frame(unique, 2), capacity=4)
    new.announce({unique: CameraNote()}, 30.0)
    assert [one.frame_id for one in old.newer({unique: "0-0"}, block_s=0.0)] == ["1001-0"]
    assert [one.frame_id for one in new.newer({unique: "0-0"}, block_s=0.0)] == ["1002-0"]
    assert [state.newest_frame_id for state in old.cameras() if state.camera == unique] == ["1001-0"]
    assert old.notes([unique]) == {}
    old.close()
    new.close()
