"""Random Kafka records in place of video, batches of every codec, and damaged files given to `streamchat publish`."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path
from random import Random
from typing import Any

from confluent_kafka import Producer

from model.config import PROJECT_ROOT
from services.messages.video import VideoPacket
from tests.bench.soak.findings import Fuzzing
from tests.services.h264 import camera_packets, clip, encoded

FPS = 15
NUM_CAMERAS = 12  # whose packets are changed
CODECS = ("none", "gzip", "snappy", "lz4", "zstd")
SILENT = {"log_level": 0, "linger.ms": 20}
VALUES = (b"", b"-1", b"0", b"soon", b"1/0", b"-1/25", b"9" * 400, b"\xff\xfe", b"nan", b"1e9", b"h264", b"vp9",
          b"mjpeg", b"hevc", b"90", b"x" * 5000)  # fmt: skip
TIMES_S = (-(2**40), -86_400.0, -60.0, -1.0, 0.0, 1.0, 3.0, 60.0, 86_400.0, 2**33)
PATIENCE_S = 40.0


def fuzz_records(kafka: str, fuzzing: Fuzzing) -> None:
    """Send changed packets of some cameras, in batches of changing codecs."""
    producers = [
        Producer({"bootstrap.servers": kafka, "compression.type": codec, **SILENT}) for codec in CODECS
    ]
    units = [bytes(packet) for packet in encoded(FPS, fps=FPS, gop=FPS)]
    packets = camera_packets(encoded(FPS, fps=FPS, gop=FPS), start_s=0.0)
    number = 0
    while fuzzing.goes_on():
        packet = packets[number % len(packets)]
        number += 1
        fuzzing.findings.count("record")
        producer = fuzzing.random.choice(producers)
        try:
            _send(producer, packet, number, fuzzing.random, units)
        except BufferError:
            fuzzing.findings.count("record refused by the client")
        producer.poll(0)
    for producer in producers:
        producer.flush(2.0)


def _send(producer: Producer, packet: VideoPacket, number: int, random: Random, units: list[bytes]) -> None:
    """One record, most often with one thing wrong."""
    key: bytes | None = f"fuzz-{random.randrange(NUM_CAMERAS)}".encode()
    value: bytes | None = packet.data
    captured_s = time.time()
    headers: dict[str, bytes] = {
        "codec": b"h264", "keyframe": b"1" if packet.keyframe else b"0", "pts": str(number).encode(),
        "time_base": f"1/{FPS}".encode(), "seq": str(number).encode(),
    }  # fmt: skip
    match random.randrange(10):
        case 0:
            key = random.choice(
                (None, b"", b"\xff\xfe", b"x" * 1000, b"soak 0", b"../..", b"a\nb", b"fuzz\0")
            )
        case 1:
            value = random.choice(
                (None, b"", b"\0", random.randbytes(5000), b"\0\0\0\1" + random.randbytes(3000))
            )
        case 2:
            cut = random.randrange(len(packet.data))
            value = packet.data[:cut] + random.randbytes(3) + packet.data[cut + 3 :]
        case 3:
            value = b"".join(random.choice(units) for _ in range(random.randint(1, 4)))[
                : random.randint(1, 9000)
            ]
        case 4 | 5:
            headers[random.choice(list(headers))] = random.choice(VALUES)
        case 6:
            del headers[random.choice(list(headers))]
        case 7:
            captured_s = max(0.0, captured_s + random.choice(TIMES_S))
        case _:
            pass  # as it should be
    options: dict[str, Any] = {"key": key, "value": value, "headers": list(headers.items())}
    producer.produce("cameras", timestamp=round(captured_s * 1000), **options)


def fuzz_files(kafka: str, fuzzing: Fuzzing) -> None:
    """Give damaged clips to `streamchat publish`: it ends with a message, and never with a traceback."""
    good, random = clip(2 * FPS), fuzzing.random
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "clip.mp4"
        while fuzzing.goes_on():
            path.write_bytes(_damaged(good, random))
            command = ["-m", "services.cli.main", "publish", str(path), "--kafka", kafka]
            command += ["--camera", random.choice(("fuzz-file", "Früh / spät", "..", "x" * 300, ""))]
            try:
                done = subprocess.run(
                    [sys.executable, *command],
                    cwd=PROJECT_ROOT,
                    capture_output=True,
                    text=True,
                    timeout=PATIENCE_S,
                )
            except subprocess.TimeoutExpired as error:
                fuzzing.findings.break_promise("file", "publishing two seconds of video ends", command, error)
                continue
            fuzzing.findings.count(f"file: status {done.returncode}")
            if "Traceback" in done.stderr or done.returncode not in (0, 1, 2):
                fuzzing.findings.break_promise(
                    "file", "a wrong file is told in a line", command, done.stderr[-500:]
                )


def _damaged(good: bytes, random: Random) -> bytes:
    match random.randrange(4):
        case 0:
            return random.randbytes(random.choice((0, 10, 10_000)))
        case 1:
            return good[: random.randrange(len(good))]
        case 2:
            changed = bytearray(good)
            for _ in range(random.choice((1, 20, 500))):
                changed[random.randrange(len(changed))] = random.randrange(256)
            return bytes(changed)
        case _:
            return good
