"""The reading half of the FrameFifo: a thread that polls the log, admits cameras and decodes them.

It ends only when told to: whatever arrives, each packet is decoded, skipped and counted, or put to the dead letters.
"""

from __future__ import annotations

import logging
import re
import threading
import time
import zlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from services.frame_fifo.camera_decoder import CameraDecoder, SampledFrame
from services.frame_fifo.metrics import Tally
from services.messages.video import VideoPacket
from services.messages.video_record import Partition, VideoRecord
from services.ports.video_log import VideoReader
from services.settings import Settings

log = logging.getLogger(__name__)

POLL_S = 0.1
POLL_RECORDS = 2000
READ_AHEAD_BYTES = 64 * 2**20  # of a backlog, before any of it is decoded
READ_AHEAD_S = 1.0
LETTERS_AT_ONCE = 100  # dead letters written in a burst; all are counted
LETTERS_PER_S = 10.0
ERROR_PAUSE_S = 1.0  # after an error that should not be: no endless fast loop
UNKNOWN_CAMERA = "(not admitted)"  # foreign ids must not fill the counters

Key = tuple[Partition, str]  # a camera id that comes by two topics is decoded twice, not mixed


@dataclass(slots=True)
class WatchedCamera:
    """What is remembered of a camera between its packets."""

    decoder: CameraDecoder
    seen_at: float  # monotonic
    keyframe_offset: int | None = None  # of the GOP being decoded: where a restart has to begin
    behind_at: float | None = None  # monotonic: since when this GOP is late


@dataclass(slots=True, frozen=True)
class Ahead:
    """What else of a camera lies in the records just read."""

    keyframe_offset: int  # of its last keyframe there; -1: none
    captured_s: float  # newest capture time there


class CameraWatch:
    """Follows every camera of a reader's partitions. `run` is the thread's whole life; `stop` may come from any."""

    def __init__(
        self,
        settings: Settings,
        reader: VideoReader,
        tally: Tally,
        offer: Callable[[str, SampledFrame], None],
        *,
        frames_per_second: float,
        image_size: int,
    ) -> None:
        self.settings = settings
        self.reader = reader
        self.tally = tally
        self.offer = offer
        self.cameras: dict[Key, WatchedCamera] = {}
        self._allowed = re.compile(settings.cameras_allowed)
        self._frames_per_second = frames_per_second
        self._image_size = image_size
        self._stop = threading.Event()
        self._at_head_at = float("-inf")  # monotonic: when everything written had been read
        self._round_s = 0.0  # how long the last records took to decode
        self._committed: dict[Partition, int] = {}
        self._letters = float(LETTERS_AT_ONCE)
        self._letters_at = time.monotonic()

    def run(self) -> None:
        """Poll and decode until stopped."""
        while not self._stop.is_set():
            try:
                self.step()
            except Exception:  # a reader or decoder that breaks its promise must not end the watching of all
                log.exception("watching the cameras went wrong, going on")
                self._stop.wait(ERROR_PAUSE_S)

    def stop(self) -> None:
        """Ask `run` to end soon."""
        self._stop.set()

    def step(self) -> None:
        """Read once and decode what came."""
        records = self._read()
        lost = self.reader.take_lost()
        for key in [key for key in self.cameras if key[0] in lost]:
            del self.cameras[key]
        for place in lost:
            self._committed.pop(place, None)
        lag = self.reader.lag()
        if lag == 0:
            self._at_head_at = time.monotonic()
        began, ahead = time.monotonic(), look_ahead(records)
        for record in in_turns(records):
            if self._stop.is_set():
                return
            self._take(record, ahead)
        self._round_s = time.monotonic() - began
        self._forget_silent()
        self._commit()
        recently = time.monotonic() - self.settings.silent_after_s
        up = {camera for (_, camera), watched in self.cameras.items() if watched.seen_at > recently}
        self.tally.standing(lag=lag, num_cameras=len(self.cameras), up=up)

    def _read(self) -> list[VideoRecord]:
        """The next records. When much waits in the broker, read on before anything is decoded: what is too old shows
        only beside what is newer, and a broker gives the oldest first, a few megabytes at a time.
        """
        began = time.monotonic()
        records = self.reader.poll(POLL_S, POLL_RECORDS)
        num_bytes = 0
        while self.reader.lag() > 0 and began - self._at_head_at > self.settings.max_lag_s:
            more = self.reader.poll(POLL_S, POLL_RECORDS)
            records += more
            num_bytes += sum(len(record.raw) for record in more)
            if not more or num_bytes > READ_AHEAD_BYTES or time.monotonic() - began > READ_AHEAD_S:
                break
        return records

    def _take(self, record: VideoRecord, ahead: dict[Key, Ahead]) -> None:
        packet = record.packet
        if packet is None:
            problem = record.problem or "unknown"
            return self._dead_letter(record, problem.split(":")[0], problem)
        skew_s = packet.captured_s - time.time()
        if self._allowed.fullmatch(packet.camera):
            self.tally.skewed(packet.camera, skew_s)
        if abs(skew_s) > self.settings.max_capture_skew_s:
            side = "future" if skew_s > 0 else "past"
            wanted = f"wanted at most {self.settings.max_capture_skew_s:g} s"
            return self._dead_letter(
                record, side, f"capture time: {abs(skew_s):.1f} s in the {side}, {wanted}"
            )
        key = (record.topic_partition, packet.camera)
        camera = self.cameras.get(key) or self._admit(key, record)
        if camera is not None:
            self.tally.read(packet.camera)
            camera.seen_at = time.monotonic()
            self._decode(camera, record, packet, ahead[key])
        return None

    def _admit(self, key: Key, record: VideoRecord) -> WatchedCamera | None:
        """A camera seen for the first time, if the settings let it in."""
        if not self._allowed.fullmatch(key[1]):
            return self._dead_letter(
                record, "not_allowed", "camera: the settings do not allow this camera id"
            )
        if len(self.cameras) >= self.settings.max_cameras:
            wanted = f"at most {self.settings.max_cameras} at once"
            return self._dead_letter(record, "too_many_cameras", f"camera: one more than wanted, {wanted}")
        decoder = CameraDecoder(self._frames_per_second, self._image_size, self.settings.max_pixels)
        camera = self.cameras[key] = WatchedCamera(decoder, time.monotonic())
        return camera

    def _decode(self, camera: WatchedCamera, record: VideoRecord, packet: VideoPacket, ahead: Ahead) -> None:
        late = self._is_late(packet, ahead)
        newest = ahead.captured_s <= packet.captured_s  # of its camera here: looked at, however old
        if late and self._gives_up(camera, record, packet.keyframe, newest, ahead):
            camera.decoder.reset()
            return self.tally.skipped(packet.camera, "late")
        if not late:
            camera.behind_at = None
        decoded = camera.decoder.feed(packet, sample=not late or newest)
        if decoded.skipped:
            self.tally.skipped(packet.camera, decoded.skipped)
            if decoded.skipped == "damaged":
                self._dead_letter(record, "damaged", f"access unit: cannot be decoded as {packet.codec}")
        elif packet.keyframe:
            camera.keyframe_offset = record.offset
        for _ in range(decoded.num_late):
            self.tally.sampled()
            self.tally.dropped(packet.camera, "late")
        for frame in decoded.frames:
            self.tally.sampled()
            self.offer(packet.camera, frame)
        return None

    def _is_late(self, packet: VideoPacket, ahead: Ahead) -> bool:
        """Whether we are behind: an old packet while newer ones wait, or while all of them together take too long.

        A camera's slow clock alone is no lateness.
        """
        limit_s = self.settings.max_lag_s
        if time.time() - packet.captured_s <= limit_s:
            return False
        unread_s = time.monotonic() - self._at_head_at
        return max(ahead.captured_s - packet.captured_s, unread_s, self._round_s) > limit_s

    def _gives_up(
        self, camera: WatchedCamera, record: VideoRecord, keyframe: bool, newest: bool, ahead: Ahead
    ) -> bool:
        """Whether to leave out the rest of a late GOP: when a newer one is here, or catching up takes too long.

        How long that is differs from GOP to GOP: of many cameras that are behind some wait for their next keyframe, as
        many as it takes, and the others catch up.
        """
        now = time.monotonic()
        if keyframe or camera.behind_at is None:
            camera.behind_at = now
        if ahead.keyframe_offset > record.offset:
            return True
        gop = f"{record.topic_partition} {record.key!r} {camera.keyframe_offset}"
        share = 1.0 + zlib.crc32(gop.encode()) / 2**32
        return not newest and now - camera.behind_at > share * self.settings.max_lag_s

    def _dead_letter(self, record: VideoRecord, reason: str, text: str) -> None:
        """Count, and write while the allowance lasts: a broken publisher must not flood the dead letters."""
        self.tally.dead_letter(reason)
        now = time.monotonic()
        self._letters = min(LETTERS_AT_ONCE, self._letters + (now - self._letters_at) * LETTERS_PER_S)
        self._letters_at = now
        if self._letters >= 1:
            self._letters -= 1
            self.reader.dead_letter(record, text)

    def _forget_silent(self) -> None:
        oldest_at = time.monotonic() - self.settings.forget_after_s
        for key in [key for key, camera in self.cameras.items() if camera.seen_at < oldest_at]:
            del self.cameras[key]

    def _commit(self) -> None:
        """A restart begins at the oldest keyframe that any camera of a partition is decoded from."""
        offsets: dict[Partition, int] = {}
        for (place, _), camera in self.cameras.items():
            if camera.keyframe_offset is not None:
                offsets[place] = min(offsets.get(place, camera.keyframe_offset), camera.keyframe_offset)
        changed = {place: offset for place, offset in offsets.items() if self._committed.get(place) != offset}
        if changed:
            self.reader.commit(changed)
            self._committed.update(changed)


def in_turns(records: list[VideoRecord]) -> list[VideoRecord]:
    """Each camera's first record, oldest first, then each one's second: what piled up of one keeps no other waiting."""
    turns: Counter[tuple[Partition, bytes]] = Counter()
    places: list[tuple[int, float]] = []  # in the new order
    for record in records:
        turns[record.topic_partition, record.key] += 1
        places.append((turns[record.topic_partition, record.key], record.timestamp_ms))
    return [records[i] for i in sorted(range(len(records)), key=places.__getitem__)]


def look_ahead(records: list[VideoRecord]) -> dict[Key, Ahead]:
    """For each camera, what the newest of these records are."""
    ahead: dict[Key, Ahead] = {}
    for record in records:
        if (packet := record.packet) is not None:
            key = (record.topic_partition, packet.camera)
            before = ahead.get(key, Ahead(-1, packet.captured_s))
            ahead[key] = Ahead(
                record.offset if packet.keyframe else before.keyframe_offset,
                max(before.captured_s, packet.captured_s),
            )
    return ahead
