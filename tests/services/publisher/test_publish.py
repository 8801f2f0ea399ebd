"""Publishing: what is sent from a file or a camera, at what pace, and the errors."""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from services.frame_fifo.camera_decoder import CameraDecoder
from services.local.embedded_servers import free_port
from services.messages.video import VideoPacket
from services.publisher.progress import Progress
from services.publisher.publish import file_units, live_units, publish, send_source
from services.publisher.video_source import (
    AccessUnit,
    SourceUnavailable,
    VideoSource,
    open_source,
    parameter_sets,
)
from tests.services.h264 import clip, clip_file, encoded


class RecordingLog:
    """A video log that records what it was sent, and when."""

    def __init__(self, wanted: int = 10**9) -> None:
        self.packets: list[VideoPacket] = []
        self.sent_s: list[float] = []
        self.wanted = wanted
        self.enough = threading.Event()

    def send(self, packet: VideoPacket) -> None:
        self.packets.append(packet)
        self.sent_s.append(time.time())
        if len(self.packets) >= self.wanted:
            self.enough.set()

    def flush(self, timeout_s: float) -> bool:
        return True

    def close(self) -> None:
        pass


def units(path: Path) -> list[AccessUnit]:
    return list(open_source(str(path)).units())


def decodable(found: list[AccessUnit]) -> int:
    """How many pictures a reader gets that begins with the first of these units."""
    decoder = CameraDecoder(1000.0, 48, 10**7)
    count = 0
    for i, unit in enumerate(found):
        packet = VideoPacket(
            camera="x",
            captured_s=unit.time_s,
            codec=unit.codec,
            keyframe=unit.keyframe,
            pts=unit.pts,
            time_base=(unit.time_base.numerator, unit.time_base.denominator),
            seq=i,
            data=unit.data,
        )
        decoded = decoder.decode(packet)
        assert not decoded.skipped
        count += len(decoded.frames)
    return count


@pytest.mark.parametrize(
    ("container", "codec", "name"),
    [
        ("mp4", "libx264", "h264"),
        ("mp4", "libx265", "hevc"),
        ("matroska", "libx264", "h264"),
        ("mpegts", "libx264", "h264"),
        ("avi", "mjpeg", "mjpeg"),
    ],
)
def test_a_known_codec_is_copied_and_can_be_decoded_from_every_keyframe(
    tmp_path: Path, container: str, codec: str, name: str
) -> None:
    path = clip_file(tmp_path, num_frames=45, container=container, codec=codec)
    assert not open_source(str(path)).transcode
    found = units(path)
    assert len(found) == 45
    assert {unit.codec for unit in found} == {name}
    keyframes = [i for i, unit in enumerate(found) if unit.keyframe]
    assert keyframes[:1] == [0]
    assert len(keyframes) >= 3
    for i in keyframes:
        kinds = {7: 2, 8: 2} if name == "h264" else {32: 3} if name == "hevc" else {}
        assert len(parameter_sets(name, found[i].data)) >= (next(iter(kinds.values())) if kinds else 0)
        assert decodable(found[i:]) == 45 - i or codec == "libx265"
    # Copied, not encoded again: the bytes of the pictures are the file's own.
    with av.open(path) as container_:
        sizes = [p.size for p in container_.demux(container_.streams.video[0]) if p.size]
    for unit, size in zip(found, sizes, strict=True):
        assert unit.keyframe or abs(len(unit.data) - size) <= 4  # a start code may be a byte shorter


@pytest.mark.parametrize(
    "options",
    [
        {"gop": 1000},
        {"container": "webm", "codec": "libvpx-vp9"},
        {"gop": 1000, "b_frames": 2, "size": (98, 74)},
    ],
)
def test_a_file_that_a_late_reader_could_not_join_is_encoded_again(
    tmp_path: Path, options: dict[str, Any]
) -> None:
    path = clip_file(tmp_path, num_frames=60, **options)
    assert open_source(str(path)).transcode
    found = units(path)
    assert {unit.codec for unit in found} == {"h264"}
    assert len(found) == 60
    keyframe_s = [unit.time_s for unit in found if unit.keyframe]
    assert np.diff(keyframe_s) == pytest.approx([1.0] * (len(keyframe_s) - 1), abs=0.07)
    assert len(keyframe_s) == 4
    assert decodable(found) == 60
    assert decodable(found[15:]) == 45


@pytest.mark.parametrize("b_frames", [0, 2])
def test_a_file_leaves_at_its_own_pace_and_goes_on_when_looped(tmp_path: Path, b_frames: int) -> None:
    path = clip_file(tmp_path, num_frames=15, gop=15, b_frames=b_frames)
    video_log, stop = RecordingLog(wanted=36), threading.Event()
    thread = threading.Thread(
        target=send_source, args=(str(path), "door", video_log), kwargs={"loop": True, "stop": stop}
    )
    thread.start()
    assert video_log.enough.wait(20)
    stop.set()
    thread.join()
    packets = video_log.packets[:36]
    shown = sorted(packets, key=lambda p: p.captured_s)
    gaps = np.diff([p.captured_s for p in shown])
    assert gaps[:-3] == pytest.approx(1 / 15, abs=0.002)  # the loop's seam, too
    assert [p.seq for p in packets] == list(range(36))
    pts_s = np.array([p.pts * p.time_base[0] / p.time_base[1] for p in packets])
    captured_s = np.array([p.captured_s for p in packets])
    assert np.diff(pts_s - captured_s) == pytest.approx(0, abs=0.002)
    delays = np.array(video_log.sent_s[:36]) - captured_s
    assert delays.min() > -0.01  # nothing leaves before it was seen
    assert np.median(delays) < 0.5


def test_a_file_that_is_not_looped_ends(tmp_path: Path) -> None:
    video_log = RecordingLog()
    reports: list[int] = []
    progress = send_source(
        str(clip_file(tmp_path, num_frames=8)),
        "door",
        video_log,
        on_progress=lambda p: reports.append(p.num_frames),
    )
    assert progress.num_frames == len(video_log.packets) == 8
    assert reports[-1] == 8
    assert "8 frames" in Progress(num_frames=8, started_at=time.monotonic()).line("door")


def test_a_publisher_that_is_late_continues_from_now(tmp_path: Path) -> None:
    source = open_source(str(clip_file(tmp_path, num_frames=30)))
    found: list[float] = []
    for i, (_, captured_s) in enumerate(file_units(source, threading.Event(), loop=False)):
        found.append(time.time() - captured_s)
        if i == 3:
            waited = threading.Event().wait(1.6)  # as if the machine had stood still
            assert not waited
    assert max(found[6:]) < 1.1


@pytest.mark.parametrize("by_s", [37.0, -37.0])
def test_after_a_machine_has_slept_a_file_has_the_time_of_the_clock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by_s: float
) -> None:
    source = VideoSource(address=str(clip_file(tmp_path, num_frames=20, b_frames=2)), live=False)
    clock, ages_s = time.time, list[float]()
    for number, (_, captured_s) in enumerate(file_units(source, threading.Event(), loop=False)):
        if number == 9:
            monkeypatch.setattr(time, "time", lambda: clock() + by_s)
        elif number != 10:  # it was on its way
            ages_s.append(time.time() - captured_s)
    assert len(ages_s) == 18
    assert max(map(abs, ages_s)) < 1.0


class NoWaiting(threading.Event):
    """Does not wait, notes how long it should have, and is set after `most` waits."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self.most, self.waits_s = most, list[float | None]()

    def wait(self, timeout: float | None = None) -> bool:
        self.waits_s.append(timeout)
        if len(self.waits_s) >= self.most:
            self.set()
        return self.is_set()


def test_a_live_source_is_opened_again_and_again() -> None:
    stop = NoWaiting(7)
    source = VideoSource(address=f"rtsp://127.0.0.1:{free_port()}/x", live=True)
    assert list(live_units(source, stop)) == []  # each attempt is refused, and there is no error
    assert stop.waits_s == [1, 2, 4, 8, 15, 15, 15]


class ShortStream(VideoSource):
    """A camera whose stream ends after some pictures, as often as it is opened."""

    def units(self) -> Iterator[AccessUnit]:
        return open_source(self.address).units()


def test_a_live_source_that_came_back_is_soon_opened_again(tmp_path: Path) -> None:
    stop = NoWaiting(3)
    source = ShortStream(address=str(clip_file(tmp_path, num_frames=3)), live=True)
    assert len(list(live_units(source, stop))) == 9
    assert stop.waits_s == [1, 1, 1]


def test_errors_are_clear(tmp_path: Path) -> None:
    noise = tmp_path / "noise.mp4"
    noise.write_bytes(np.random.default_rng(0).integers(0, 255, 9999, dtype=np.uint8).tobytes())
    sound = tmp_path / "sound.mp4"
    with av.open(sound, "w") as out:
        stream: Any = out.add_stream("aac", rate=16_000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 16_000), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 16_000
        out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    unknown = tmp_path / "unknown.mp4"
    unknown.write_bytes(clip(3).replace(b"avc1", b"zzzz"))
    for source, words in {
        str(tmp_path / "nothing.mp4"): "no such file",
        str(unknown): "has a codec that FFmpeg does not know",
        str(noise): "cannot be opened as video",
        str(sound): "has no video stream",
        "/dev/video99": "no such camera",
        "http://127.0.0.1/x.mp4": "wanted a file",
    }.items():
        with pytest.raises(SourceUnavailable, match=words):
            open_source(source)
    with pytest.raises(ValueError, match="camera: got 'front door'"):
        send_source(str(noise), "front door", RecordingLog())


def test_the_command_prints_errors_on_one_line_and_returns_1(tmp_path: Path) -> None:
    file = tmp_path / "clip.mp4"
    file.write_bytes(clip(3))
    no_broker = f"127.0.0.1:{free_port()}"
    for source, words in ((str(file), "no Kafka broker answers"), ("nothing.mp4", "no such file")):
        out = io.StringIO()
        assert publish(source, camera="door", bootstrap_servers=no_broker, out=out) == 1
        assert words in out.getvalue()
        assert len(out.getvalue().splitlines()) == 1


def test_a_gap_in_the_times_of_a_file_is_skipped_and_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "gap.mkv"
    with av.open(path, "w", format="matroska") as out:
        stream: Any = out.add_stream("libx264", rate=15)
        stream.width, stream.height, stream.codec_context.gop_size = 160, 120, 10
        stream.pix_fmt, stream.options = "yuv420p", {"preset": "veryfast", "tune": "zerolatency"}
        for packet in encoded(20, gop=10):
            again = av.Packet(bytes(packet))
            late_s = 3600 if (packet.pts or 0) >= 10 else 0
            again.pts = again.dts = round(((packet.pts or 0) / 15 + late_s) * 1000)
            again.time_base, again.stream, again.is_keyframe = Fraction(1, 1000), stream, packet.is_keyframe
            out.mux(again)
    source = VideoSource(address=str(path), live=False)
    began = time.monotonic()
    times = [captured_s for _, captured_s in file_units(source, threading.Event(), loop=False)]
    assert time.monotonic() - began < 20
    assert np.diff(times) == pytest.approx(1 / 15, abs=0.01)
    assert "3600 s without a picture are skipped" in caplog.text
