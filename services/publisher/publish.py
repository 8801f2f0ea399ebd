"""`streamchat publish`: write a file, an RTSP camera or a webcam to the video log, in real time."""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TextIO

from services.adapters.kafka_access import OPEN, KafkaAccess
from services.adapters.kafka_writer import KafkaVideoWriter
from services.messages.camera_name import CAMERA_ID, camera_id, check_camera_id, check_camera_name
from services.messages.video import VideoPacket
from services.ports.video_log import VideoWriter
from services.publisher.metrics import PublishMetrics
from services.publisher.progress import Progress
from services.publisher.video_source import AccessUnit, SourceUnavailable, VideoSource, open_source

log = logging.getLogger(__name__)

PROGRESS_EVERY_S = 1.0
MAX_BEHIND_S = 1.0  # a file that is further behind continues from now, at the normal pace
MAX_GAP_S = 10.0  # in the times of a file: a longer one, unlike those before it, is not waited for
MIN_BACKOFF_S = 1.0
MAX_BACKOFF_S = 15.0
FLUSH_TIMEOUT_S = 2.0


def send_source(
    source: str | VideoSource,
    camera: str,
    video_log: VideoWriter,
    *,
    name: str = "",
    loop: bool = False,
    stop: threading.Event | None = None,
    on_progress: Callable[[Progress], None] | None = None,
) -> Progress:
    """Write a source's video to a log as one camera, until it ends or `stop` is set. A lost live source is reopened.

    Args:
        source: a file, `rtsp://...` or `/dev/videoN`, or one that was opened.
        camera: the camera's id: 1 to 128 of A-Z a-z 0-9 . _ -; neither `clip-...` nor `all`.
        name: what people call it: at most 200 characters.
        video_log: where to write.
        loop: repeat a file for ever; its timestamps go on.
        stop: ends the publishing.
        on_progress: called about once a second, and at the end.

    Raises SourceUnavailable (a file that is missing or has no video) or ValueError (the camera's id or name).
    """
    check_camera_id(camera)
    name = check_camera_name(name) if name else ""
    stop = stop or threading.Event()
    opened = open_source(source) if isinstance(source, str) else source
    progress = Progress(started_at=time.monotonic())
    reported_at = progress.started_at
    timed_units = live_units(opened, stop) if opened.live else file_units(opened, stop, loop=loop)
    for unit, captured_s in timed_units:
        send(video_log, camera, unit, captured_s, progress, name)
        if on_progress is not None and time.monotonic() - reported_at >= PROGRESS_EVERY_S:
            reported_at = time.monotonic()
            on_progress(progress)
    video_log.flush(FLUSH_TIMEOUT_S)
    if on_progress is not None:
        on_progress(progress)
    return progress


def send(
    video_log: VideoWriter,
    camera: str,
    unit: AccessUnit,
    captured_s: float,
    progress: Progress,
    name: str = "",
) -> None:
    """Write one access unit. A unit that is too large for readers is counted and skipped."""
    packet = VideoPacket(
        camera=camera,
        captured_s=captured_s,
        codec=unit.codec,
        keyframe=unit.keyframe,
        pts=unit.pts,
        time_base=(unit.time_base.numerator, unit.time_base.denominator),
        seq=progress.num_frames + progress.num_refused,
        data=unit.data,
        rotation=unit.rotation or None,
        name=name,
    )
    try:
        video_log.send(packet)
    except ValueError as error:
        if not progress.num_refused:
            log.warning("%s: skipped, like all that follow for this reason: %s", camera, error)
        progress.num_refused += 1
        return
    progress.num_frames += 1
    progress.num_bytes += len(unit.data)


def file_units(
    source: VideoSource, stop: threading.Event, *, loop: bool
) -> Iterator[tuple[AccessUnit, float]]:
    """A file's access units in real time, each with the time at which a camera would have captured it.

    A unit is sent at its capture time. Units that are encoded out of order follow directly after the unit that they
    wait for, as from a camera.
    """
    started_wall_s = time.time()
    started_s = time.monotonic()  # changes of the wall clock must not change the pace
    offset_s = 0.0  # start of this round on the time line of all rounds
    while not stop.is_set():
        first_s: float | None = None
        last_s, num_units = 0.0, 0
        for unit in source.units():
            first_s = unit.time_s if first_s is None else first_s
            time_s = unit.time_s - first_s
            gap_s, usual_s = time_s - last_s, last_s / max(1, num_units - 1)
            if gap_s > max(MAX_GAP_S, 4 * usual_s):
                log.warning("%s: %.0f s without a picture are skipped", source.display_address, gap_s)
                first_s += gap_s - (usual_s or 1.0)
                time_s = unit.time_s - first_s
            last_s, num_units = max(last_s, time_s), num_units + 1
            due_s = offset_s + time_s
            behind_s = time.monotonic() - started_s - due_s
            if behind_s > MAX_BEHIND_S:
                started_s += behind_s
                started_wall_s += behind_s
            elif stop.wait(max(0.0, -behind_s)):
                return
            off_s = time.time() - started_wall_s - (time.monotonic() - started_s)
            if abs(off_s) > MAX_BEHIND_S:  # the wall clock was set, or the machine slept
                started_wall_s += off_s
            pts = unit.pts + round(offset_s / float(unit.time_base))
            yield replace(unit, pts=pts), started_wall_s + due_s
        if not loop or first_s is None:
            return
        frame_s = last_s / (num_units - 1) if num_units > 1 else 1.0
        offset_s += last_s + frame_s  # the last frame lasts as long as the others


def live_units(source: VideoSource, stop: threading.Event) -> Iterator[tuple[AccessUnit, float]]:
    """A live source's access units with the time of their arrival. A lost source is reopened, with backoff."""
    backoff_s = MIN_BACKOFF_S
    while not stop.is_set():
        try:
            for unit in source.units():
                backoff_s = MIN_BACKOFF_S
                yield unit, time.time()
                if stop.is_set():
                    return
            problem = f"{source.display_address}: the stream ended"
        except SourceUnavailable as error:
            problem = str(error)
        log.warning("%s; trying again in %.0f s", problem, backoff_s)
        stop.wait(backoff_s)
        backoff_s = min(MAX_BACKOFF_S, backoff_s * 2)


def chosen_id(camera: str, name: str) -> str:
    """The id that was given, or the one of the name. ValueError says what to give instead."""
    if name:
        check_camera_name(name)
    if not camera and not name:
        raise ValueError("camera: got none, wanted --camera ID or --name NAME")
    try:
        return check_camera_id(camera or camera_id(name))
    except ValueError as error:
        if CAMERA_ID.fullmatch(camera):
            raise
        raise ValueError(f"{error}; or --name for any name: its id would be {camera_id(camera)}") from None


def publish(
    source: str,
    *,
    camera: str = "",
    name: str = "",
    bootstrap_servers: str,
    topic: str = "cameras",
    loop: bool = False,
    fps: float | None = None,
    metrics: str = "",
    max_packet_bytes: int = 4 * 2**20,
    access: KafkaAccess = OPEN,
    stop: threading.Event | None = None,
    out: TextIO | None = None,
) -> int:
    """The command: connect, publish, show progress on one line. Returns the exit status.

    Without `camera`, its id is made from its `name`. ValueError when neither is given, or one is invalid.
    Ends with the file (unless `loop`), when `stop` is set, or on Ctrl-C. An error is printed on one line. `metrics`
    (HOST:PORT) is where Prometheus may ask: ValueError when it is not such an address, OSError when it is in use.
    """
    terminal = sys.stderr if out is None else out
    camera = chosen_id(camera, name)
    if name:
        print(f"streamchat publish: {name!r} is sent as camera {camera}", file=terminal)
    end = "\r" if terminal.isatty() else "\n"

    def show(progress: Progress) -> None:
        progress.num_dropped = video_log.num_dropped
        if server is not None:
            server.update(progress)
        print(f"{progress.line(camera)}{' ' * 8}", end=end, file=terminal, flush=True)

    server = PublishMetrics(camera, metrics) if metrics else None
    try:
        opened = open_source(source, fps)  # a wrong source is reported before connecting
        for note in opened.notes:
            print(f"streamchat publish: {note}", file=terminal)
        video_log = KafkaVideoWriter(
            bootstrap_servers, topic, max_packet_bytes=max_packet_bytes, access=access
        )
    except (SourceUnavailable, ConnectionError, ValueError) as error:
        print(f"streamchat publish: {error}", file=terminal)
        if server is not None:
            server.close()
        return 1
    try:
        send_source(opened, camera, video_log, name=name, loop=loop, stop=stop, on_progress=show)
    except (SourceUnavailable, ValueError) as error:
        print(f"streamchat publish: {error}", file=terminal)
        return 1
    except KeyboardInterrupt:
        return 130
    finally:
        video_log.close()
        if server is not None:
            server.close()
    return 0
