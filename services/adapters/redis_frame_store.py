"""The frame store on Redis (or Valkey): streams of exactly the N newest entries for each camera.

    streamchat:<encoder>:{<shard>}:<camera>:frames    stream  entry id = frame id, `frame` = visual tokens
    streamchat:<encoder>:{<shard>}:<camera>:pictures  stream  the same ids, `frame` = JPEGs: read without the tokens
    streamchat:<encoder>:{<shard>}:<camera>:times     stream  the same ids, a few bytes each: for the list of cameras
    streamchat:<encoder>:{<shard>}:<camera>:note      string  JSON: name and problem; exists while the camera sends
    streamchat:<encoder>:{<shard>}:cameras            zset    camera, scored by the wall-clock time of its last frame
    streamchat:<encoder>:{<shard>}:noted              zset    camera, scored by the wall-clock end of its note
    streamchat:<encoder>:{<shard>}:clips              zset    the same for private clips
    streamchat:topics:{<shard>}:<camera>              string  the Kafka topic that the camera belongs to

`<encoder>` is the fingerprint of the vision encoder: nobody reads the visual tokens of another model. `<shard>` is one
of 64 numbers, made from the camera: its keys and the list that names it are in one slot of a Cluster, so a camera needs
one server only. A frame (frame_entry.py) is written together with its place in the list, and with the expiry of all
keys, in one transaction. No key stays for ever. Decoders use plain XREAD without a group: each gets every frame.
"""

from __future__ import annotations

import json
import logging
import time
import zlib
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import asdict
from typing import Any

from redis import Redis
from redis.exceptions import ResponseError

from services.adapters.frame_entry import pack, pack_picture, unpack, unpack_picture
from services.adapters.redis_connection import RedisConnection, new_pipeline, sentinel_credentials
from services.adapters.redis_entries import FIELD, READ_ENTRIES, RedisEntries
from services.messages.video import CameraNote, CameraState, Frame, Picture
from services.ports.frame_store import KEPT_S, StoreFull, StoreLost, fps, is_private, parse_frame_id
from services.settings import Settings

# The least that an ACL user of the store needs: `ACL SETUSER streamchat on >PASSWORD ` and this.
ACL_RULES = (
    "resetkeys ~streamchat:* resetchannels -@all +multi +exec +discard +xadd +xrange +xrevrange +xread +xinfo|stream "
    "+zadd +zrange +zrem +zremrangebyscore +pexpire +set +get +info +ping +hello +client|setinfo +client|setname "
    "+command +cluster|slots "  # of a Cluster
    "+evalsha +script|load +expire +lindex +lpush +ltrim +llen"  # the scripts in rate_limit_store.py
)
NUM_SHARDS = 64
INDEX_KEPT_S = 3600.0
CLIPS_DROPPED = 4  # at a time, when the store is full
FREED_WITHIN_S = 0.3
CLIP_SPARED_S = 10.0  # a clip that is younger is still being read

log = logging.getLogger(__name__)


class RedisFrameStore:
    """A FrameStore; reconnects by itself."""

    @classmethod
    def from_settings(cls, settings: Settings, encoder: str) -> RedisFrameStore:
        """The store that the settings describe, for the frames of that encoder (its fingerprint)."""
        return cls(
            settings.redis_url,
            encoder=encoder,
            username=settings.redis_username,
            password=settings.redis_password.get_secret_value(),
            ca_file=settings.redis_ca_file,
            sentinel_options=sentinel_credentials(settings),
            silent_after_s=settings.silent_after_s,
        )

    def __init__(
        self,
        url: str,
        *,
        encoder: str = "any",
        username: str = "",
        password: str = "",
        ca_file: str = "",
        sentinel_options: dict[str, Any] | None = None,
        silent_after_s: float = 5.0,
    ) -> None:
        self._silent_after_s = silent_after_s
        self._connection = RedisConnection(
            url, username=username, password=password, ca_file=ca_file, sentinel_options=sentinel_options
        )
        self._prefix = f"streamchat:{encoder}"
        self._has_transactions = True
        self._is_old = False
        self._frames = RedisEntries(self._connection, lambda camera: self._key(camera, "frames"), unpack)
        self._pictures = RedisEntries(
            self._connection, lambda camera: self._key(camera, "pictures"), unpack_picture
        )

    @property
    def num_damaged(self) -> int:
        """Entries that were skipped."""
        return self._frames.num_damaged + self._pictures.num_damaged

    def append(self, frame: Frame, *, capacity: int, keep_s: float = KEPT_S) -> bool:
        if capacity < 1:
            raise ValueError(f"capacity: got {capacity}, wanted at least 1")
        parse_frame_id(frame.frame_id)
        entries = self._entries(frame, capacity)
        try:
            return self._write(frame, entries, capacity, keep_s)
        except StoreFull:
            if not self._drop_oldest_clips(frame.camera):
                raise
        return self._write_soon(frame, entries, capacity, keep_s)

    def newest(self, camera: str, count: int) -> list[Frame]:
        return self._frames.newest(camera, count)

    def newer(self, after: Mapping[str, str], *, block_s: float) -> list[Frame]:
        return self._frames.newer(after, block_s)

    def newer_pictures(self, after: Mapping[str, str], *, block_s: float) -> list[Picture]:
        return self._pictures.newer(after, block_s)

    def picture(self, camera: str, frame_id: str) -> Picture | None:
        try:
            parse_frame_id(frame_id)
        except ValueError:
            return None
        return self._pictures.entry(camera, frame_id)

    def newest_picture(self, camera: str) -> Picture | None:
        for count in (1, READ_ENTRIES):  # the newest may be damaged
            if pictures := self._pictures.newest(camera, count):
                return pictures[-1]
        return None

    def camera(self, camera: str) -> CameraState | None:
        return next(iter(self.cameras([camera])), None)

    def cameras(self, only: Collection[str] | None = None) -> list[CameraState]:
        found: list[CameraState] = []
        gone: dict[str, list[str]] = {}  # by index
        names = {
            self._key(name, "times"): name for name in (self._indexed("cameras") if only is None else only)
        }
        for key, answer in self._connection.ask_all(names, lambda pipeline, key: pipeline.xinfo_stream(key)):
            camera = names[key]
            if isinstance(answer, dict) and answer["length"]:
                found.append(self._camera_state(camera, answer))
            else:
                gone.setdefault(self._index_of(camera), []).append(camera)
        if gone and only is None:  # a camera that just came back is added again with its next frame
            self._for_all(gone, lambda pipe, key: pipe.zrem(key, *gone[key]))
        return sorted(found, key=lambda state: state.camera)

    def announce(self, notes: Mapping[str, CameraNote], for_s: float) -> None:
        texts = {self._key(camera, "note"): json.dumps(asdict(note)) for camera, note in notes.items()}
        lists: dict[str, dict[str, float]] = {}
        for camera in notes:
            lists.setdefault(self._index_of(camera, "noted"), {})[camera] = time.time() + for_s
        self._for_all(texts, lambda pipe, key: pipe.set(key, texts[key], px=_milliseconds(for_s)))
        self._for_all(lists, lambda pipe, key: pipe.zadd(key, lists[key]))
        self._for_all(lists, lambda pipe, key: pipe.pexpire(key, _milliseconds(INDEX_KEPT_S)))
        self._for_all(lists, lambda pipe, key: pipe.zremrangebyscore(key, 0, time.time()))

    def notes(self, only: Collection[str] | None = None) -> dict[str, CameraNote]:
        keys = {self._key(name, "note"): name for name in (self._indexed("noted") if only is None else only)}
        answers = self._connection.ask_all(keys, lambda pipeline, key: pipeline.get(key))
        return {keys[key]: CameraNote(**json.loads(text)) for key, text in answers if text}

    def bind(self, topics: Mapping[str, str], for_s: float) -> dict[str, str]:
        milliseconds = _milliseconds(for_s)
        cameras = {f"streamchat:topics:{{{_shard(camera)}}}:{camera}": camera for camera in topics}
        bound: dict[str, str] = {}
        try:
            for key, answer in self._connection.ask_all(
                cameras,
                lambda pipeline, key: pipeline.set(
                    key, topics[cameras[key]], nx=True, get=True, px=milliseconds
                ),
            ):
                bound[cameras[key]] = answer.decode() if answer else topics[cameras[key]]
        except StoreLost as error:
            if "syntax error" not in str(error):
                raise
            if not self._is_old:
                log.warning("the store is older than Redis 7: cameras are not bound to their topics")
            self._is_old = True
            return dict(topics)
        own = [key for key, camera in cameras.items() if bound[camera] == topics[camera]]
        for _ in self._connection.ask_all(own, lambda pipeline, key: pipeline.pexpire(key, milliseconds)):
            pass
        return bound

    def memory(self) -> tuple[int, int]:
        facts: list[Any] = self._connection.call_each(lambda redis: redis.info("memory"))
        return sum(int(one["used_memory"]) for one in facts), sum(int(one["maxmemory"]) for one in facts)

    def ping(self) -> None:
        self._connection.call_each(lambda redis: redis.ping())

    def close(self) -> None:
        self._connection.close()

    def _key(self, camera: str, kind: str) -> str:
        return f"{self._prefix}:{{{_shard(camera)}}}:{camera}:{kind}"

    def _index_of(self, camera: str, kind: str = "") -> str:
        kind = kind or ("clips" if is_private(camera) else "cameras")
        return f"{self._prefix}:{{{_shard(camera)}}}:{kind}"

    def _indexes(self, kind: str) -> list[str]:
        return [f"{self._prefix}:{{{shard}}}:{kind}" for shard in range(NUM_SHARDS)]

    def _entries(self, frame: Frame, capacity: int) -> dict[str, dict[Any, Any]]:
        """What is stored of a frame, by key."""
        times = {"captured_s": repr(frame.captured_s), "stored_s": repr(time.time()), "capacity": capacity}
        return {
            self._key(frame.camera, "frames"): {FIELD: pack(frame)},
            self._key(frame.camera, "pictures"): {FIELD: pack_picture(frame)},
            self._key(frame.camera, "times"): times,
        }

    def _write(self, frame: Frame, entries: dict[str, dict[Any, Any]], capacity: int, keep_s: float) -> bool:
        """Write a frame everywhere or nowhere. False: its id is not newer."""
        attempts = 0

        def write(redis: Redis) -> list[Any]:
            nonlocal attempts
            attempts += 1
            pipeline = new_pipeline(redis, self._has_transactions)
            self._add_to_index(pipeline, frame.camera)
            for key, entry in entries.items():
                pipeline.xadd(key, entry, id=frame.frame_id, maxlen=capacity, approximate=False)
                pipeline.pexpire(key, _milliseconds(keep_s))
            answers = pipeline.execute(raise_on_error=False)
            for answer in answers:
                if isinstance(answer, Exception) and not _is_replay(answer):
                    raise answer
            return answers

        answers = self._connection.call(next(iter(entries)), lambda redis: self._in_transaction(write, redis))
        if not any(isinstance(answer, Exception) for answer in answers):
            return True
        # The connection may have died after the first attempt was carried out.
        return attempts > 1 and self._pictures.newest_id(frame.camera) == frame.frame_id

    def _write_soon(
        self, frame: Frame, entries: dict[str, dict[Any, Any]], capacity: int, keep_s: float
    ) -> bool:
        """Write as soon as the server has freed what was deleted, which it does in the background."""
        deadline = time.monotonic() + FREED_WITHIN_S
        while True:
            try:
                return self._write(frame, entries, capacity, keep_s)
            except StoreFull:
                if time.monotonic() >= deadline:
                    raise
            time.sleep(0.01)

    def _in_transaction(self, write: Callable[[Redis], list[Any]], redis: Redis) -> list[Any]:
        try:
            return write(redis)
        except ResponseError as error:
            unknown = any(word in str(error).lower() for word in ("unknown command", "unsupported command"))
            if not (unknown and self._has_transactions):
                raise
        log.warning(
            "the store knows no transactions: a frame whose writing is cut off may stay without an expiry"
        )
        self._has_transactions = False
        return write(redis)

    def _add_to_index(self, pipeline: Any, camera: str) -> None:
        now_s = time.time()
        index = self._index_of(camera)
        pipeline.zadd(index, {camera: now_s})
        pipeline.pexpire(index, _milliseconds(INDEX_KEPT_S))
        if is_private(camera):
            pipeline.zremrangebyscore(index, 0, now_s - INDEX_KEPT_S)

    def _for_all(self, keys: Iterable[str], command: Callable[[Any, str], Any]) -> None:
        for _ in self._connection.ask_all(keys, command):
            pass

    def _indexed(self, kind: str) -> list[str]:
        answers = self._connection.ask_all(
            self._indexes(kind), lambda pipeline, key: pipeline.zrange(key, 0, -1)
        )
        return [member.decode() for _, members in answers for member in members]

    def _drop_oldest_clips(self, camera: str) -> bool:
        """Make room on the server that has no room for a frame of the camera. False: no clip is old enough."""
        before_s = time.time() - CLIP_SPARED_S
        index = self._index_of(camera, "clips")
        indexes = next(keys for keys in self._connection.by_server(self._indexes("clips")) if index in keys)
        answers = self._connection.ask_all(
            indexes,
            lambda pipeline, key: pipeline.zrange(
                key, 0, before_s, byscore=True, offset=0, num=CLIPS_DROPPED, withscores=True
            ),
        )
        oldest = sorted((score, clip.decode()) for _, clips in answers for clip, score in clips)
        names = [clip for _, clip in oldest[:CLIPS_DROPPED]]
        if not names:
            return False
        log.warning("the store is full: the %d oldest clips are dropped", len(names))
        keys = [self._key(name, kind) for name in names for kind in ("frames", "pictures", "times")]
        self._for_all(keys, lambda pipe, key: pipe.pexpire(key, 0))  # deletes it
        for name in names:
            index = self._index_of(name)
            self._connection.call(index, lambda redis, index=index, name=name: redis.zrem(index, name))
        return True

    def _camera_state(self, camera: str, stream: Mapping[str, Any]) -> CameraState:
        frame_id, newest = stream["last-entry"]
        _, oldest = stream["first-entry"]
        captured_s = float(newest[b"captured_s"])
        is_live = time.time() - float(newest[b"stored_s"]) <= self._silent_after_s
        return CameraState(
            camera=camera,
            state="live" if is_live else "silent",
            fps=fps((float(oldest[b"captured_s"]), captured_s), stream["length"]),
            newest_frame_id=frame_id.decode(),
            newest_captured_s=captured_s,
            num_frames=stream["length"],
            capacity=int(newest[b"capacity"]),
        )


def _shard(camera: str) -> int:
    return zlib.crc32(camera.encode(errors="replace")) % NUM_SHARDS


def _is_replay(answer: Exception) -> bool:
    """Whether XADD refused an id that is not newer."""
    return "equal or smaller" in str(answer) or "greater than 0-0" in str(answer)


def _milliseconds(seconds: float) -> int:
    return max(1, round(seconds * 1000))
