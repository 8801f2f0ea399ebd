"""The reading half of the FrameFifo: a thread that polls the log, admits cameras and decodes their packets.

It runs until it is stopped. Every packet is decoded, or skipped and counted, or copied to the dead letters.
"""

from __future__ import annotations

import logging
import re
import threading
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from services.frame_fifo.camera_decoder import CameraDecoder
from services.frame_fifo.capture_clock import CaptureClock
from services.frame_fifo.metrics import UPDATE_EVERY_S, FrameFifoMetrics
from services.frame_fifo.record_batch import NewestInBatch, Source, interleave, newest_by_source
from services.frame_fifo.topic_bindings import TopicBindings
from services.messages.video import CameraNote, VideoPacket
from services.messages.video_record import Partition, VideoRecord
from services.ports.video_log import VideoReader
from services.settings import Settings
from services.video.sampled_frame import SampledFrame

log = logging.getLogger(__name__)

POLL_S = 0.1
POLL_RECORDS = 2000
READ_AHEAD_BYTES = 64 * 2**20  # of a backlog, before decoding starts
READ_AHEAD_S = 1.0
DEAD_LETTER_BURST = 100  # dead letters written at once; all are counted
DEAD_LETTERS_PER_S = 10.0
MAX_STANDSTILL_S = 10.0  # of reading; then the replica is replaced
MAX_BUSY_S = 20.0  # with one poll or one packet; likewise
MAX_NAMES = 4  # of a camera, to remember
SAME_TIME_S = 5.0  # a name that was seen so shortly ago is still used
ERROR_PAUSE_S = 1.0  # after an unexpected error, so that the loop does not spin


@dataclass(slots=True)
class ReadCamera:
    """The state of a camera between its packets."""

    decoder: CameraDecoder
    seen_at: float  # monotonic
    keyframe_offset: int | None = None  # of the current GOP: where a restart has to begin
    late_since: float | None = None  # monotonic: since when this GOP is late
    names: dict[str, float] = field(
        default_factory=dict[str, float]
    )  # with the time when last seen, monotonic
    problem: str = ""  # of its newest packets
    clock: CaptureClock = field(default_factory=CaptureClock)

    def take_name(self, name: str) -> None:
        """Remember the name that came with a packet."""
        self.names.pop(name, None)
        self.names[name] = self.seen_at
        if len(self.names) > MAX_NAMES:
            del self.names[next(iter(self.names))]

    def note(self) -> CameraNote:
        """Its newest name and its problem: two names at once are two cameras with one id."""
        names = dict(self.names)
        newest = next(reversed(names), "")
        others = [name for name, seen_at in names.items() if self.seen_at - seen_at < SAME_TIME_S]
        if len(others) > 1:
            shown = " and ".join(repr(name) for name in sorted(others))
            return CameraNote(name=newest, problem=f"two cameras have this id: {shown}; one needs another")
        return CameraNote(name=newest, problem=self.problem or self.clock.problem)


class CameraReader:
    """Reads every camera of a reader's partitions. `run` is its thread; `stop` may be called from any thread."""

    def __init__(
        self,
        settings: Settings,
        reader: VideoReader,
        bindings: TopicBindings,
        metrics: FrameFifoMetrics,
        put_frame: Callable[[str, SampledFrame], None],
        *,
        frames_per_second: float,
        image_size: int,
    ) -> None:
        self._settings = settings
        self._reader = reader
        self._bindings = bindings
        self._metrics = metrics
        self._put_frame = put_frame
        self._cameras: dict[Source, ReadCamera] = {}
        self._allowed = re.compile(settings.cameras_allowed)
        self._frames_per_second = frames_per_second
        self._image_size = image_size
        self._stop = threading.Event()
        self._caught_up_at = float("-inf")  # monotonic: when all written records had last been read
        self._alive_at = time.monotonic()  # when the thread last began something
        self._reported_at = float("-inf")  # monotonic
        self._decode_s = 0.0  # how long the last batch took to decode
        self._committed: dict[Partition, int] = {}
        self._dead_letter_budget = float(DEAD_LETTER_BURST)
        self._dead_letters_at = time.monotonic()

    def run(self) -> None:
        """Poll and decode until stopped."""
        while not self._stop.is_set():
            try:
                self.step()
            except Exception:  # an unexpected error must not stop all cameras
                log.exception("reading the cameras failed, trying again")
                self._stop.wait(ERROR_PAUSE_S)

    def check(self) -> None:
        """RuntimeError when reading stands still and another replica might get on. From any thread."""
        silent_s = time.monotonic() - self._alive_at
        if silent_s > MAX_BUSY_S:
            raise RuntimeError(
                f"the thread that reads the cameras has been busy with one thing for {silent_s:.0f} s"
            )
        status = self._reader.status()
        if status.standstill_s > MAX_STANDSTILL_S and not status.away:
            raise RuntimeError(f"reading stands still: {status.problem}")

    def stop(self) -> None:
        """Ask `run` to end soon."""
        self._stop.set()

    def notes(self) -> dict[str, CameraNote]:
        """The cameras that send. From any thread."""
        return {name: camera.note() for (_, name), camera in list(self._cameras.items())}

    def sources(self) -> set[tuple[str, str]]:
        """The cameras that send, with their topics. From any thread."""
        return {(camera, topic) for (topic, _), camera in list(self._cameras)}

    def step(self) -> None:
        """Poll once and decode the records."""
        self._alive_at = time.monotonic()
        records = self._read()
        lost = self._reader.take_lost()
        for source in [source for source in self._cameras if source[0] in lost]:
            del self._cameras[source]
        for partition in lost:
            self._committed.pop(partition, None)
        lag = self._reader.lag()
        if lag == 0:
            self._caught_up_at = time.monotonic()
        began, newest = time.monotonic(), newest_by_source(records)
        for record in interleave(records):
            if self._stop.is_set():
                return
            self._alive_at = time.monotonic()
            self._take(record, newest)
        self._decode_s = time.monotonic() - began
        self._forget_silent()
        self._commit()
        recently = time.monotonic() - self._settings.silent_after_s
        up = {name for (_, name), camera in self._cameras.items() if camera.seen_at > recently}
        self._report_status()
        self._metrics.update_reader(lag=lag, num_cameras=len(self._cameras), up=up)

    def _report_status(self) -> None:
        if time.monotonic() - self._reported_at >= UPDATE_EVERY_S:
            self._reported_at = time.monotonic()
            self._metrics.update_status(self._reader.status())

    def _read(self) -> list[VideoRecord]:
        """The next records. A backlog is read on before decoding starts: a broker returns the oldest records first, a
        few megabytes at a time, and only newer records show which ones are too old.
        """
        began = time.monotonic()
        records = self._reader.poll(POLL_S, POLL_RECORDS)
        num_bytes = 0
        while self._reader.lag() > 0 and began - self._caught_up_at > self._settings.max_lag_s:
            more = self._reader.poll(POLL_S, POLL_RECORDS)
            records += more
            num_bytes += sum(len(record.raw) for record in more)
            if not more or num_bytes > READ_AHEAD_BYTES or time.monotonic() - began > READ_AHEAD_S:
                break
        return records

    def _take(self, record: VideoRecord, newest: dict[Source, NewestInBatch]) -> None:
        packet = record.packet
        if packet is None:
            problem = record.problem or "unknown"
            return self._dead_letter(record, problem.split(":")[0], problem)
        source = (record.topic_partition, packet.camera)
        if self._allowed.fullmatch(packet.camera):
            self._metrics.capture_skew(packet.camera, packet.captured_s - time.time())
        packet = self._timed(packet, self._cameras.get(source))
        skew_s = packet.captured_s - time.time()
        if abs(skew_s) > self._settings.max_capture_skew_s:
            side = "future" if skew_s > 0 else "past"
            wanted = f"wanted at most {self._settings.max_capture_skew_s:g} s"
            return self._dead_letter(
                record, side, f"capture time: {abs(skew_s):.1f} s in the {side}, {wanted}"
            )
        camera = self._cameras.get(source)
        if camera is not None and self._is_foreign(source, record):
            del self._cameras[source]
            return None
        camera = camera or self._admit(source, record)
        if camera is not None:
            camera.seen_at = time.monotonic()
            camera.take_name(packet.name)
            shifted_s = newest[source].captured_s + camera.clock.shift_s
            self._decode(camera, record, packet, replace(newest[source], captured_s=shifted_s))
            self._metrics.packet_read(packet.camera)  # and all that came of it is counted
        return None

    def _timed(self, packet: VideoPacket, camera: ReadCamera | None) -> VideoPacket:
        """The packet with the time of the camera's clock, as if nobody had set it."""
        if camera is None:
            return packet
        before = camera.clock.num_jumps
        captured_s = camera.clock.captured_s(packet)
        if camera.clock.num_jumps > before:
            self._metrics.time_jumped(packet.camera)
            log.warning("camera %s: %s", packet.camera, camera.clock.problem or "its clock was set")
        return replace(packet, captured_s=captured_s) if camera.clock.shift_s else packet

    def _admit(self, source: Source, record: VideoRecord) -> ReadCamera | None:
        """A new camera, if the settings allow it and no other topic owns it."""
        if not self._allowed.fullmatch(source[1]):
            return self._dead_letter(
                record, "not_allowed", "camera: the settings do not allow this camera id"
            )
        if len(self._cameras) >= self._settings.max_cameras:
            wanted = f"at most {self._settings.max_cameras} at once"
            return self._dead_letter(record, "too_many_cameras", f"camera: one more than wanted, {wanted}")
        if self._is_foreign(source, record):
            return None
        decoder = CameraDecoder(self._frames_per_second, self._image_size, self._settings.max_pixels)
        camera = self._cameras[source] = ReadCamera(decoder, time.monotonic())
        if record.packet is not None:
            camera.clock.captured_s(record.packet)
        return camera

    def _is_foreign(self, source: Source, record: VideoRecord) -> bool:
        """Whether the camera belongs to another topic: then the packet is a dead letter."""
        owner = self._bindings.owner(source[1], record.topic)
        if owner in (None, record.topic):
            return False
        text = (
            f"camera: got {source[1]} on the topic {record.topic}, wanted it on {owner}, to which it belongs"
        )
        self._dead_letter(record, "other_topic", text)
        return True

    def _decode(
        self, camera: ReadCamera, record: VideoRecord, packet: VideoPacket, newest: NewestInBatch
    ) -> None:
        if camera.keyframe_offset is not None and record.offset < camera.keyframe_offset:
            camera.keyframe_offset = None  # the topic was made again
        late = self._is_late(packet, newest)
        is_newest = newest.captured_s <= packet.captured_s  # sampled however old it is
        if late and self._skips_gop(camera, record, packet.keyframe, is_newest, newest):
            camera.decoder.reset()
            return self._metrics.packet_skipped(packet.camera, "late")
        if not late:
            camera.late_since = None
        decoded = camera.decoder.decode(packet, sample=not late or is_newest)
        if decoded.skipped:
            self._metrics.packet_skipped(packet.camera, decoded.skipped)
            if decoded.problem:
                camera.problem = decoded.problem
                self._dead_letter(record, decoded.skipped, decoded.problem)
        if packet.keyframe and decoded.skipped in ("", "repeated"):
            camera.keyframe_offset = record.offset
        for _ in range(decoded.num_late):
            self._metrics.frame_sampled()
            self._metrics.frame_dropped(packet.camera, "late")
        for frame in decoded.frames:
            camera.problem = ""
            self._metrics.frame_sampled()
            if self._bindings.owner(packet.camera, record.topic) == record.topic:
                self._put_frame(packet.camera, frame)
            else:  # nobody can tell whose camera it is
                self._metrics.frame_dropped(packet.camera, "store_lost")
        return None

    def _is_late(self, packet: VideoPacket, newest: NewestInBatch) -> bool:
        """Whether reading is behind: an old packet while newer ones wait, or while decoding all takes too long.

        A camera whose clock is slow is not late.
        """
        limit_s = self._settings.max_lag_s
        if time.time() - packet.captured_s <= limit_s:
            return False
        unread_s = time.monotonic() - self._caught_up_at
        return max(newest.captured_s - packet.captured_s, unread_s, self._decode_s) > limit_s

    def _skips_gop(
        self, camera: ReadCamera, record: VideoRecord, keyframe: bool, is_newest: bool, newest: NewestInBatch
    ) -> bool:
        """Whether to skip the rest of a late GOP: when a newer one is here, or catching up takes too long.

        The time limit differs from GOP to GOP: when many cameras are behind, some of them wait for their next keyframe
        while the others catch up.
        """
        now = time.monotonic()
        if keyframe or camera.late_since is None:
            camera.late_since = now
        if newest.keyframe_offset > record.offset:
            return True
        gop = f"{record.topic_partition} {record.key!r} {camera.keyframe_offset}"
        share = 1.0 + zlib.crc32(gop.encode()) / 2**32
        return not is_newest and now - camera.late_since > share * self._settings.max_lag_s

    def _dead_letter(self, record: VideoRecord, reason: str, text: str) -> None:
        """Count, and write up to a rate: a broken publisher must not flood the dead-letter topic."""
        self._metrics.dead_letter(reason)
        now = time.monotonic()
        refill = (now - self._dead_letters_at) * DEAD_LETTERS_PER_S
        self._dead_letter_budget = min(DEAD_LETTER_BURST, self._dead_letter_budget + refill)
        self._dead_letters_at = now
        if self._dead_letter_budget >= 1:
            self._dead_letter_budget -= 1
            self._reader.dead_letter(record, text)

    def _forget_silent(self) -> None:
        oldest_at = time.monotonic() - self._settings.forget_after_s
        for source in [source for source, camera in self._cameras.items() if camera.seen_at < oldest_at]:
            del self._cameras[source]

    def _commit(self) -> None:
        """Commit the oldest keyframe that a camera of the partition is decoded from: a restart begins there."""
        offsets: dict[Partition, int] = {}
        for (partition, _), camera in self._cameras.items():
            if camera.keyframe_offset is not None:
                offsets[partition] = min(
                    offsets.get(partition, camera.keyframe_offset), camera.keyframe_offset
                )
        changed = {one: offset for one, offset in offsets.items() if self._committed.get(one) != offset}
        if changed:
            self._reader.commit(changed)
            self._committed.update(changed)
