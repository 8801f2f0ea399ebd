"""What only the real store can show: its keys, damaged entries, and being killed."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator

import pytest
from redis import Redis

from services.adapters import redis_frame_store
from services.adapters.redis_frame_store import BLOCK_S, SOCKET_TIMEOUT_S, RedisFrameStore
from services.local.embedded_servers import Store, start_store
from services.messages.video import Frame
from services.ports.frame_store import StoreLost


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
    assert client.xlen(f"streamchat:{{{unique}}}:frames") == 32
    assert client.llen(f"streamchat:{{{unique}}}:times") == 32


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
    stream = f"streamchat:{{{unique}}}:frames"
    frames.append(good[0], capacity=8)
    client.xadd(stream, {"frame": b"SCFR nonsense"}, id="1001-0")
    frames.append(good[1], capacity=8)
    client.xadd(stream, {"other": b"field"}, id="1003-0")
    assert frames.newest(unique, 8) == good
    assert frames.newer({unique: "0-0"}, block_s=1.0) == good
    assert frames.newest_frame(unique) == good[1]
    assert frames.frame(unique, "1001-0") is None
    assert frames.num_damaged == 2
    assert "frame 1001-0 of camera" in caplog.text


def test_a_damaged_newest_entry_does_not_make_a_reader_spin(
    frames: RedisFrameStore, client: Redis, unique: str
) -> None:
    client.xadd(f"streamchat:{{{unique}}}:frames", {"frame": b"nonsense"}, id="1-0")
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
    monkeypatch.setattr(redis_frame_store, "BLOCK_S", 0.05)  # several blocking reads in one call
    found: list[Frame] = []
    reader = threading.Thread(target=lambda: found.extend(frames.newer({unique: "0-0"}, block_s=20.0)))
    reader.start()
    writer = frame(unique, 1)
    reader.join(0.3)
    assert reader.is_alive()
    frames.append(writer, capacity=4)
    reader.join(5.0)
    assert found == [writer]


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
        lambda: frames.frame(unique, "1001-0"),
        frames.cameras,
        lambda: frames.expire(unique, 1.0),
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
    monkeypatch.setattr(redis_frame_store, "SOCKET_TIMEOUT_S", 0.5)
    frames = RedisFrameStore(own_server.url)
    frames.ping()
    os.kill(own_server.process.pid, signal.SIGSTOP)
    began = time.monotonic()
    with pytest.raises(StoreLost):
        frames.append(frame(unique, 1), capacity=4)
    assert time.monotonic() - began < 5.0
    os.kill(own_server.process.pid, signal.SIGCONT)
    frames.append(frame(unique, 2), capacity=4)
    assert frames.newest(unique, 1)[0].frame_id == "1002-0"
    frames.close()


def test_a_full_store_refuses_loudly(own_server: Store, unique: str) -> None:
    frames = RedisFrameStore(own_server.url)
    for n in range(5):
        frames.append(frame(unique, n, 600_000), capacity=100)
    with pytest.raises(StoreLost, match="takes no frames"):
        frames.append(frame(unique, 5, 8_000_000), capacity=100)
    assert len(frames.newest(unique, 2)) == 2  # reading goes on
    frames.close()


def test_no_password_in_messages() -> None:
    frames = RedisFrameStore("redis://user:secret@127.0.0.1:9/0")
    with pytest.raises(StoreLost) as caught:
        frames.ping()
    assert "secret" not in str(caught.value)
    frames.close()
