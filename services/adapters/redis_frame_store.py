"""The frame store on Redis (or Valkey): one stream per camera, trimmed to an exact length.

    streamchat:{<camera>}:frames     stream   entry id = frame id, `frame` = the bytes of frame_entry.py
    streamchat:{<camera>}:state      hash     newest id and capture time, capacity: what the list of cameras shows
    streamchat:{<camera>}:times      list     capture times of the frames in the FIFO, newest first: the frame rate
    streamchat:{<camera>}:announced  string   exists while the camera sends, even without a frame
    streamchat:cameras               zset     camera, scored by the wall-clock time of its last frame

The keys of a camera expire together. Decoders use plain XREAD without a group: each gets every frame.
"""

from __future__ import annotations

import logging
import ssl
import time
from collections.abc import Collection, Generator, Mapping
from contextlib import contextmanager
from typing import Any

from redis import ConnectionPool, Redis
from redis.backoff import NoBackoff
from redis.connection import PythonRespSerializer
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import OutOfMemoryError, ReadOnlyError, ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError
from redis.retry import Retry

from services.adapters.frame_entry import DamagedFrame, pack, unpack
from services.messages.video import CameraState, Frame
from services.ports.frame_store import StoreLost, fps, is_private, parse_frame_id
from services.settings import Settings

CAMERAS = "streamchat:cameras"
FIELD = b"frame"
SOCKET_TIMEOUT_S = 3.0
BLOCK_S = 1.0  # of one XREAD: less than the socket timeout, or the client would report a dead server
# The least that an ACL user of the store needs: `ACL SETUSER streamchat on >PASSWORD ` and this.
ACL_RULES = (
    "resetkeys ~streamchat:* resetchannels -@all +xadd +xrange +xrevrange +xread +xlen +zadd +zrange +zrem +hset "
    "+hgetall +lpush +ltrim +llen +lindex +pexpire +set +exists +info +ping +hello +client|setinfo +client|setname "
    "+evalsha +script|load +expire"  # the scripts of the rate limits, see rate_limit_store.py
)
READ_ENTRIES = 64  # per answer, to stay below the server's output limit with many cameras
MAX_DAMAGED = 4096  # damaged entries to remember, so that each is logged and counted once

log = logging.getLogger(__name__)


class RedisFrameStore:
    """A FrameStore; reconnects by itself. `num_damaged` counts the entries that were skipped."""

    @classmethod
    def from_settings(cls, settings: Settings) -> RedisFrameStore:
        """The store that the settings describe."""
        return cls(
            settings.redis_url,
            username=settings.redis_username,
            password=settings.redis_password.get_secret_value(),
            ca_file=settings.redis_ca_file,
            silent_after_s=settings.silent_after_s,
        )

    def __init__(
        self,
        url: str,
        *,
        username: str = "",
        password: str = "",
        ca_file: str = "",
        silent_after_s: float = 5.0,
    ) -> None:
        self._silent_after_s = silent_after_s
        pool = ConnectionPool.from_url(
            url,
            **access(url, username, password, ca_file),
            socket_timeout=SOCKET_TIMEOUT_S,
            socket_connect_timeout=SOCKET_TIMEOUT_S,
            retry=Retry(NoBackoff(), 1),  # once, for a connection that a restarted server no longer knows
        )
        # hiredis reads large answers ten times faster than Python, but packs large writes four times slower.
        pool.connection_kwargs["command_packer"] = PythonRespSerializer(6000, pool.get_encoder().encode)
        self._redis = Redis(connection_pool=pool)
        self._where = url.rpartition("@")[2].rpartition("//")[2]  # without a password
        self._damaged: set[tuple[str, str]] = set()
        self.num_damaged = 0

    def append(self, frame: Frame, *, capacity: int) -> bool:
        if capacity < 1:
            raise ValueError(f"capacity: got {capacity}, wanted at least 1")
        parse_frame_id(frame.frame_id)
        entry: dict[Any, Any] = {FIELD: pack(frame)}
        with self._errors_translated():
            try:
                self._redis.xadd(
                    _frames(frame.camera), entry, id=frame.frame_id, maxlen=capacity, approximate=False
                )
            except (OutOfMemoryError, ReadOnlyError):
                raise
            except ResponseError as error:
                if "equal or smaller" in str(error) or "greater than 0-0" in str(error):
                    return False
                raise
            self._update_state(frame, capacity)
        return True

    def newest(self, camera: str, count: int) -> list[Frame]:
        if count <= 0:
            return []
        with self._errors_translated():
            entries = self._redis.xrevrange(_frames(camera), count=count)
        return self._unpack(camera, entries)[::-1]

    def newer(self, after: Mapping[str, str], *, block_s: float) -> list[Frame]:
        for frame_id in after.values():
            parse_frame_id(frame_id)
        position = dict(after)
        deadline = time.monotonic() + block_s
        found: list[Frame] = []
        while position:
            left_s = 0.0 if found else deadline - time.monotonic()
            read, full = self._read_next(position, min(max(left_s, 0.0), BLOCK_S))
            found += read
            if not full and (found or time.monotonic() >= deadline):
                break
        return found

    def frame(self, camera: str, frame_id: str) -> Frame | None:
        try:
            parse_frame_id(frame_id)
        except ValueError:
            return None
        with self._errors_translated():
            entries = self._redis.xrange(_frames(camera), frame_id, frame_id)
        return next(iter(self._unpack(camera, entries)), None)

    def newest_frame(self, camera: str) -> Frame | None:
        frames = self.newest(camera, 1) or self.newest(camera, READ_ENTRIES)  # the newest may be damaged
        return frames[-1] if frames else None

    def cameras(self) -> list[CameraState]:
        with self._errors_translated():
            members: Any = self._redis.zrange(CAMERAS, 0, -1, withscores=True)
            names = sorted((name.decode(), float(score)) for name, score in members)
            pipeline = self._redis.pipeline(transaction=False)
            for camera, _ in names:
                pipeline.hgetall(_state(camera))
                pipeline.xlen(_frames(camera))
                pipeline.llen(_times(camera))
                pipeline.lindex(_times(camera), -1)
            answers: list[Any] = pipeline.execute()
            rows = [(name, score, answers[4 * i : 4 * i + 4]) for i, (name, score) in enumerate(names)]
            if gone := [name for name, _, row in rows if not (row[0] and row[1])]:
                self._redis.zrem(
                    CAMERAS, *gone
                )  # a camera that just came back is added again with its next frame
        return [self._camera_state(name, score, *row) for name, score, row in rows if name not in gone]

    def expire(self, camera: str, after_s: float) -> None:
        with self._errors_translated():
            pipeline = self._redis.pipeline(transaction=False)
            for key in (_frames(camera), _state(camera), _times(camera)):
                pipeline.pexpire(key, max(1, round(after_s * 1000)))
            pipeline.execute()

    def announce(self, cameras: Collection[str], for_s: float) -> None:
        with self._errors_translated():
            pipeline = self._redis.pipeline(transaction=False)
            for camera in cameras:
                pipeline.set(_announced(camera), 1, px=max(1, round(for_s * 1000)))
            pipeline.execute()

    def is_announced(self, camera: str) -> bool:
        with self._errors_translated():
            return bool(self._redis.exists(_announced(camera)))

    def memory(self) -> tuple[int, int]:
        with self._errors_translated():
            facts: Any = self._redis.info("memory")
        return int(facts["used_memory"]), int(facts["maxmemory"])

    def ping(self) -> None:
        with self._errors_translated():
            self._redis.ping()

    def close(self) -> None:
        self._redis.close()
        self._redis.connection_pool.disconnect()

    def _update_state(self, frame: Frame, capacity: int) -> None:
        """Store what `cameras` returns beside the stream, so that it reads no frames."""
        captured_s = repr(frame.captured_s)
        state: dict[Any, Any] = {"id": frame.frame_id, "captured_s": captured_s, "capacity": capacity}
        pipeline = self._redis.pipeline(transaction=False)
        pipeline.hset(_state(frame.camera), mapping=state)
        pipeline.lpush(_times(frame.camera), captured_s)
        pipeline.ltrim(_times(frame.camera), 0, capacity - 1)
        if not is_private(frame.camera):
            pipeline.zadd(CAMERAS, {frame.camera: time.time()})
        pipeline.execute()

    def _read_next(self, position: dict[str, str], block_s: float) -> tuple[list[Frame], bool]:
        """One XREAD, which advances `position`. True: there may be more to read at once."""
        cameras = {_frames(camera).encode(): camera for camera in position}
        streams: dict[Any, Any] = {_frames(camera): frame_id for camera, frame_id in position.items()}
        count = max(1, READ_ENTRIES // len(position))
        with self._errors_translated():
            block_ms = max(1, round(block_s * 1000)) if block_s > 0 else None  # BLOCK 0 would wait for ever
            answer: Any = self._redis.xread(streams, count=count, block=block_ms)
        found: list[Frame] = []
        full = False
        for key, entries in answer or ():
            camera = cameras[key]
            position[camera] = entries[-1][0].decode()
            full |= len(entries) == count
            found += self._unpack(camera, entries)
        return found, full

    def _unpack(self, camera: str, entries: Any) -> list[Frame]:
        found: list[Frame] = []
        for frame_id, fields in entries:
            try:
                found.append(unpack(camera, frame_id.decode(), (fields or {}).get(FIELD, b"")))
            except DamagedFrame as error:
                self._report_damaged(camera, frame_id.decode(), error)
        return found

    def _report_damaged(self, camera: str, frame_id: str, error: DamagedFrame) -> None:
        if (camera, frame_id) in self._damaged:
            return
        if len(self._damaged) >= MAX_DAMAGED:
            self._damaged.clear()
        self._damaged.add((camera, frame_id))
        self.num_damaged += 1
        log.warning("frame %s of camera %s was skipped: %s", frame_id, camera, error)

    def _camera_state(
        self,
        camera: str,
        appended_s: float,
        state: dict[bytes, bytes],
        num_frames: int,
        num_times: int,
        oldest: Any,
    ) -> CameraState:
        newest_s = float(state[b"captured_s"])
        return CameraState(
            camera=camera,
            state="live" if time.time() - appended_s <= self._silent_after_s else "silent",
            fps=fps((float(oldest or newest_s), newest_s), num_times),
            newest_frame_id=state[b"id"].decode(),
            newest_captured_s=newest_s,
            num_frames=num_frames,
            capacity=int(state[b"capacity"]),
        )

    @contextmanager
    def _errors_translated(self) -> Generator[None]:
        try:
            yield
        except (RedisConnectionError, RedisTimeoutError, OSError) as error:
            raise StoreLost(f"the store at {self._where} cannot be reached: {error}") from error
        except (OutOfMemoryError, ReadOnlyError) as error:
            raise StoreLost(f"the store at {self._where} takes no frames: {error}") from error


def access(url: str, username: str, password: str, ca_file: str) -> dict[str, Any]:
    """The client's options for who we are, and for TLS (rediss://), which checks the server's name."""
    who = {"username": username or None, "password": password or None}
    options: dict[str, Any] = {name: value for name, value in who.items() if value}
    if url.startswith("rediss://"):
        options |= {"ssl_check_hostname": True, "ssl_min_version": ssl.TLSVersion.TLSv1_2}
        options |= {"ssl_ca_certs": ca_file} if ca_file else {}
    return options


def _frames(camera: str) -> str:
    return f"streamchat:{{{camera}}}:frames"


def _state(camera: str) -> str:
    return f"streamchat:{{{camera}}}:state"


def _times(camera: str) -> str:
    return f"streamchat:{{{camera}}}:times"


def _announced(camera: str) -> str:
    return f"streamchat:{{{camera}}}:announced"
