"""`streamchat publish`: a file, an RTSP camera or a webcam onto the video log, at real pace."""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import TextIO

from services.adapters.kafka_access import OPEN, KafkaAccess
from services.adapters.kafka_writer import KafkaVideoWriter
from services.messages.video import VideoPacket
from services.messages.video_record import CAMERA_ID, preview
from services.ports.video_log import VideoWriter
from services.publisher.metrics import PublishMetrics
from services.publisher.progress import Progress
from services.publisher.video_source import AccessUnit, SourceLost, VideoSource, open_source

log = logging.getLogger(__name__)

PROGRESS_EVERY_S = 1.0
FURTHEST_BEHIND_S = 1.0  # a file that cannot keep the pace goes on from now, not faster
SHORTEST_BACKOFF_S = 1.0
LONGEST_BACKOFF_S = 15.0


def play(
    source: str,
    camera: str,
    video_log: VideoWriter,
    *,
    loop: bool = False,
    stop: threading.Event | None = None,
    report: Callable[[Progress], None] | None = None,
) -> Progress:
    """Put a source's video on a log as one camera, until it ends or `stop` is set; a live source is tried again.

    Args:
        source: a file, `rtsp://...` or `/dev/videoN`.
        camera: the camera's id: 1 to 128 of A-Z a-z 0-9 . _ -
        video_log: where to write.
        loop: play a file again and again, with time going on.
        stop: ends the publishing.
        report: called about once a second with the progress.

    Raises SourceLost (a file that is not there or has no video) or ValueError (the camera's id).
    """
    if not CAMERA_ID.fullmatch(camera):
        raise ValueError(f"camera: got {preview(camera)}, wanted 1 to 128 of A-Z a-z 0-9 . _ -")
    stop = stop or threading.Event()
    opened = open_source(source)
    progress = Progress(started_at=time.monotonic())
    reported_at = progress.started_at
    stamped = live_units(opened, stop) if opened.live else file_units(opened, stop, loop=loop)
    for unit, captured_s in stamped:
        send(video_log, camera, unit, captured_s, progress)
        if report is not None and time.monotonic() - reported_at >= PROGRESS_EVERY_S:
            reported_at = time.monotonic()
            report(progress)
    video_log.flush(2.0)
    if report is not None:
        report(progress)
    return progress


def send(
    video_log: VideoWriter, camera: str, unit: AccessUnit, captured_s: float, progress: Progress
) -> None:
    """Write one access unit; one that is too large for readers is left out."""
    packet = VideoPacket(
        camera=camera,
        captured_s=captured_s,
        codec=unit.codec,
        keyframe=unit.keyframe,
        pts=unit.pts,
        time_base=(unit.time_base.numerator, unit.time_base.denominator),
        seq=progress.num_frames + progress.num_refused,
        data=unit.data,
    )
    try:
        video_log.send(packet)
    except ValueError as error:
        if not progress.num_refused:
            log.warning("%s: left out, as every one like it: %s", camera, error)
        progress.num_refused += 1
        return
    progress.num_frames += 1
    progress.num_bytes += len(unit.data)


def file_units(
    source: VideoSource, stop: threading.Event, *, loop: bool
) -> Iterator[tuple[AccessUnit, float]]:
    """A file's access units at real pace, each with its capture time: when a camera would have seen it.

    A unit leaves when its capture time has come; those that are encoded out of order leave right after the one they
    wait for, as from a camera.
    """
    wall_s, started = (
        time.time(),
        time.monotonic(),
    )  # wall clock and pace: the first may be set, the second not
    offset_s = 0.0  # of this round on the file's time line
    while not stop.is_set():
        first_s: float | None = None
        last_s, count = 0.0, 0
        for unit in source.units():
            first_s = unit.time_s if first_s is None else first_s
            time_s = unit.time_s - first_s
            last_s, count = max(last_s, time_s), count + 1
            due_s = offset_s + time_s
            behind_s = time.monotonic() - started - due_s
            if behind_s > FURTHEST_BEHIND_S:
                started += behind_s
                wall_s += behind_s
            elif stop.wait(max(0.0, -behind_s)):
                return
            shifted = unit.pts + round(offset_s / float(unit.time_base))
            yield moved(unit, shifted), wall_s + due_s
        if not loop or first_s is None:
            return
        offset_s += last_s + (
            last_s / (count - 1) if count > 1 else 1.0
        )  # its last frame lasts as long as the others


def moved(unit: AccessUnit, pts: int) -> AccessUnit:
    """The same access unit at another time."""
    return AccessUnit(
        codec=unit.codec, keyframe=unit.keyframe, pts=pts, time_base=unit.time_base, data=unit.data
    )


def live_units(source: VideoSource, stop: threading.Event) -> Iterator[tuple[AccessUnit, float]]:
    """A live source's access units with the time of their arrival; opened again, less and less often, when lost."""
    backoff_s = SHORTEST_BACKOFF_S
    while not stop.is_set():
        try:
            for unit in source.units():
                backoff_s = SHORTEST_BACKOFF_S
                yield unit, time.time()
                if stop.is_set():
                    return
            problem = f"{source.shown}: the stream ended"
        except SourceLost as error:
            problem = str(error)
        log.warning("%s; trying again in %.0f s", problem, backoff_s)
        stop.wait(backoff_s)
        backoff_s = min(LONGEST_BACKOFF_S, backoff_s * 2)


def publish(
    source: str,
    *,
    camera: str,
    bootstrap_servers: str,
    topic: str = "cameras",
    loop: bool = False,
    metrics: str = "",
    max_packet_bytes: int = 4 * 2**20,
    access: KafkaAccess = OPEN,
    stop: threading.Event | None = None,
    out: TextIO | None = None,
) -> int:
    """What `streamchat publish` does: connect, publish, show progress on one line. Returns the exit status.

    Ends with the file (unless `loop`), when `stop` is set, or on Ctrl-C; errors are one line for a person.
    `metrics` (HOST:PORT): where scrapers are answered; ValueError when that is none, OSError when it is in use.
    """
    terminal = sys.stderr if out is None else out
    end = "\r" if terminal.isatty() else "\n"

    def show(progress: Progress) -> None:
        progress.num_dropped = video_log.num_dropped
        if told is not None:
            told.tell(progress)
        print(f"{progress.line(camera)}{' ' * 8}", end=end, file=terminal, flush=True)

    told = PublishMetrics(camera, metrics) if metrics else None
    try:
        open_source(source)  # a wrong source is told before a broker is asked
        video_log = KafkaVideoWriter(
            bootstrap_servers, topic, max_packet_bytes=max_packet_bytes, access=access
        )
    except (SourceLost, ConnectionError) as error:
        print(f"streamchat publish: {error}", file=terminal)
        if told is not None:
            told.close()
        return 1
    try:
        play(source, camera, video_log, loop=loop, stop=stop, report=show)
    except (SourceLost, ValueError) as error:
        print(f"streamchat publish: {error}", file=terminal)
        return 1
    except KeyboardInterrupt:
        return 130
    finally:
        video_log.close()
        if told is not None:
            told.close()
    return 0
