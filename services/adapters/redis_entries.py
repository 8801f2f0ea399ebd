"""Reading the streams of frames or pictures on Redis: the newest entries, or all that are new."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from typing import Any, Generic, TypeVar

from services.adapters.frame_entry import DamagedFrame
from services.adapters.redis_connection import RedisConnection
from services.messages.video import Frame, Picture
from services.ports.frame_store import parse_frame_id

FIELD = b"frame"
BLOCK_S = 1.0  # of one XREAD: less than the socket timeout, or the client would report a dead server
POLL_S = 0.02  # on a Cluster, where one XREAD cannot wait for streams of several servers
QUIET_S = 5.0  # without an entry: after a failover, the server may be one that gets none any more
READ_ENTRIES = 64  # per answer, to stay below the server's output limit with many cameras
MAX_DAMAGED = 4096  # damaged entries to remember, so that each is logged and counted once

log = logging.getLogger(__name__)

Entry = TypeVar("Entry", Frame, Picture)


class RedisEntries(Generic[Entry]):
    """The streams of one kind, of all cameras. `num_damaged` counts the entries that were skipped."""

    def __init__(
        self,
        connection: RedisConnection,
        key: Callable[[str], str],
        unpack: Callable[[str, str, bytes], Entry],
    ) -> None:
        """`key` gives a camera's stream; `unpack` makes an entry of camera, id and bytes, or raises DamagedFrame."""
        self._connection, self._key, self._unpack_entry = connection, key, unpack
        self._quiet_since = time.monotonic()
        self._damaged: set[tuple[str, str]] = set()
        self.num_damaged = 0

    def newest(self, camera: str, count: int) -> list[Entry]:
        """The newest entries, oldest first."""
        if count <= 0:
            return []
        key = self._key(camera)
        entries = self._connection.call(key, lambda redis: redis.xrevrange(key, count=count))
        return self._unpack(camera, entries)[::-1]

    def newest_id(self, camera: str) -> str:
        """The id of the newest entry, which may be damaged; empty without one."""
        key = self._key(camera)
        entries: Any = self._connection.call(key, lambda redis: redis.xrevrange(key, count=1))
        return entries[0][0].decode() if entries else ""

    def entry(self, camera: str, frame_id: str) -> Entry | None:
        """The entry with that id, if there is one."""
        key = self._key(camera)
        entries = self._connection.call(key, lambda redis: redis.xrange(key, frame_id, frame_id))
        return next(iter(self._unpack(camera, entries)), None)

    def newer(self, after: Mapping[str, str], block_s: float) -> list[Entry]:
        """All entries that are newer than the given id of their camera; waits at most `block_s` for the first."""
        for frame_id in after.values():
            parse_frame_id(frame_id)
        position = dict(after)
        deadline = time.monotonic() + block_s
        found: list[Entry] = []
        read = self._poll if self._connection.is_cluster else self._read
        while position:
            left_s = 0.0 if found else deadline - time.monotonic()
            count = max(1, READ_ENTRIES // len(position))
            answer = read(position, count, min(max(left_s, 0.0), BLOCK_S))
            full = any(len(entries) == count for entries in answer.values())
            for camera, entries in answer.items():
                position[camera] = entries[-1][0].decode()
                found += self._unpack(camera, entries)
            if not full and (found or time.monotonic() >= deadline):
                break
        self._notice_quiet(bool(found))
        return found

    def _read(self, position: Mapping[str, str], count: int, block_s: float) -> dict[str, Any]:
        """One XREAD of all cameras: new entries by camera."""
        cameras = {self._key(camera).encode(): camera for camera in position}
        streams: dict[Any, Any] = {self._key(camera): after for camera, after in position.items()}
        block_ms = max(1, round(block_s * 1000)) if block_s > 0 else None  # BLOCK 0 would wait for ever
        answer: Any = self._connection.call(
            next(iter(streams)), lambda redis: redis.xread(streams, count=count, block=block_ms)
        )
        return {cameras[key]: entries for key, entries in answer or ()}

    def _poll(self, position: Mapping[str, str], count: int, block_s: float) -> dict[str, Any]:
        """The same on a Cluster, one stream a read. A lost server does not delay the cameras of the others."""
        cameras = {self._key(camera): camera for camera in position}
        answers = self._connection.ask_all(
            cameras, lambda pipeline, key: pipeline.xrange(key, f"({position[cameras[key]]}", count=count)
        )
        found = {cameras[key]: entries for key, entries in answers if entries}
        if not found and block_s > 0:
            time.sleep(min(POLL_S, block_s))
        return found

    def _notice_quiet(self, found: bool) -> None:
        now = time.monotonic()
        if found:
            self._quiet_since = now
        elif now - self._quiet_since > QUIET_S:
            self._quiet_since = now
            self._connection.redial()

    def _unpack(self, camera: str, entries: Any) -> list[Entry]:
        found: list[Entry] = []
        for frame_id, fields in entries:
            try:
                found.append(self._unpack_entry(camera, frame_id.decode(), (fields or {}).get(FIELD, b"")))
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
