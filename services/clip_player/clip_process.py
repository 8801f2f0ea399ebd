"""Decodes a clip in a process of its own that can do nothing else (`sandbox.py`).

The input and the output are two files in memory: a line of JSON, then bytes. Nothing is unpickled, and the output is
checked as untrusted data.
"""

from __future__ import annotations

import importlib
import io
import json
import logging
import os
import pkgutil
import signal
import subprocess
import sys
from dataclasses import asdict
from typing import IO, Any

from model.config import PROJECT_ROOT
from services.clip_player.clip_decoder import ClipLimits, decode_clip, refused, upright
from services.messages.video import ClipRefused
from services.ports.frame_store import parse_frame_id
from services.processes.child_processes import end_process, spawn
from services.video.sampled_frame import SampledFrame

START_S = 20.0  # to start the process on a busy machine
JPEG_BYTES = 2**20  # of one small picture; far more than any has
MAX_MESSAGE = 400  # characters
NOT_CONFINED = 3  # exit status: the process could not be confined, so it did nothing

log = logging.getLogger(__name__)


def decode_in_process(
    media: bytes, kind: str, limits: ClipLimits, *, end_s: float, memory_bytes: int
) -> list[SampledFrame]:
    """As decode_clip, in a process of its own with at most `memory_bytes`. Blocks. ClipRefused also for a crash."""
    with memory_file("clip") as task_file, memory_file("frames") as result_file:
        task = {"kind": kind, "limits": asdict(limits), "end_s": end_s, "memory_bytes": memory_bytes}
        task_file.write(json.dumps(task).encode() + b"\n" + media)
        task_file.seek(0)
        process = spawn(
            [sys.executable, "-m", "services.clip_player.clip_process"],
            environment={"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OPENBLAS_NUM_THREADS": "1"},
            stdin=task_file,
            stdout=result_file,
            output=subprocess.DEVNULL,
            folder=PROJECT_ROOT,
        )
        try:
            status = process.wait(START_S + limits.decode_budget_s)
        except subprocess.TimeoutExpired:
            status = -signal.SIGXCPU
        finally:
            end_process(process, patience_s=0.0)
        if status != 0:
            raise error_of_exit(status, limits)
        result_file.seek(0)
        try:
            return read_frames(result_file, limits)
        except (ValueError, LookupError, TypeError, RecursionError) as error:  # a hostile clip may control it
            log.warning("the process of a clip returned invalid data: %s", error)
            raise error_of_exit(0, limits) from error


def error_of_exit(status: int, limits: ClipLimits) -> Exception:
    """The error to raise when the process ended without a result."""
    if status == NOT_CONFINED:
        return OSError("clips cannot be decoded here: the kernel confines no process (seccomp)")
    if status != 0:
        log.warning("the process of a clip ended with status %d", status)
    if status == -signal.SIGXCPU:
        return refused("too_slow", f"the clip takes more than {limits.decode_budget_s:.0f} s to decode")
    return refused("crashed", "the clip could not be decoded within its limits: it is damaged, or too large")


def memory_file(name: str) -> IO[bytes]:
    """A file in memory that exists until the last process closes it."""
    return os.fdopen(os.memfd_create(name), "w+b")


def read_frames(file: IO[bytes], limits: ClipLimits) -> list[SampledFrame]:
    """The result of the process. ClipRefused when it says so; ValueError, LookupError or TypeError for invalid data."""
    head = json.loads(file.readline(2**20))
    if "refused" in head:
        code, message = head["refused"]
        raise ClipRefused(400, str(code)[:40], str(message)[:MAX_MESSAGE])
    rows = head["frames"]
    if not 0 < len(rows) <= limits.capacity:
        raise ValueError(f"decoded clip: got {len(rows)} frames, wanted 1 to {limits.capacity}")
    return [read_frame(file, row, limits.image_size) for row in rows]


def read_frame(file: IO[bytes], row: Any, image_size: int) -> SampledFrame:
    """The next frame of the file."""
    parse_frame_id(row["id"])
    if not 0 < row["jpeg"] <= JPEG_BYTES:
        raise ValueError(f"decoded clip: got a picture of {row['jpeg']} bytes, wanted at most {JPEG_BYTES}")
    pixels, jpeg = file.read(3 * image_size**2), file.read(row["jpeg"])
    if (len(pixels), len(jpeg)) != (3 * image_size**2, row["jpeg"]):
        raise ValueError("decoded clip: got fewer bytes than it said")
    return SampledFrame(frame_id=row["id"], captured_s=float(row["captured_s"]), pixels=pixels, picture=jpeg)


def main() -> None:
    """The process: read the clip, confine itself, decode, write the result."""
    from services.clip_player.sandbox import confine_process

    task = json.loads(sys.stdin.buffer.readline())
    media = sys.stdin.buffer.read()
    limits = ClipLimits(**task["limits"])
    warm_up(limits.image_size)
    try:
        confine_process(
            memory_bytes=task["memory_bytes"],
            cpu_s=limits.decode_budget_s,
            written_bytes=limits.capacity * (3 * limits.image_size**2 + JPEG_BYTES) + 2**20,
        )
    except OSError:
        os._exit(NOT_CONFINED)
    try:
        frames = decode_clip(media, task["kind"], limits, end_s=task["end_s"])
    except ClipRefused as refusal:
        head, frames, pictures = {"refused": [refusal.code, refusal.message]}, [], []
    else:
        pictures = [frame.jpeg() for frame in frames]
        rows = [
            {"id": frame.frame_id, "captured_s": frame.captured_s, "jpeg": len(picture)}
            for frame, picture in zip(frames, pictures, strict=True)
        ]
        head = {"frames": rows}
    out = sys.stdout.buffer
    out.write(json.dumps(head).encode() + b"\n")
    for frame, picture in zip(frames, pictures, strict=True):
        out.write(frame.pixels)
        out.write(picture)
    out.flush()
    os._exit(0)  # there is nothing to clean up


def warm_up(image_size: int) -> None:
    """Load everything that decoding would load on first use: no file can be opened later."""
    import av
    from PIL import ExifTags, GifImagePlugin, Image, PngImagePlugin, WebPImagePlugin

    from services.video.sampled_frame import sample_frame

    _ = (GifImagePlugin, PngImagePlugin, WebPImagePlugin)
    turned = Image.Exif()
    turned[ExifTags.Base.Orientation] = 6
    for kind in ("PNG", "GIF", "WEBP", "JPEG"):
        out = io.BytesIO()
        Image.new("RGB", (8, 8)).save(out, kind, exif=turned)
        with Image.open(io.BytesIO(out.getvalue()), formats=[kind]) as image:
            picture = av.VideoFrame.from_image(upright(image).convert("RGB"))
    sample_frame(picture, 1.0, 0, image_size, rotation=90).jpeg()
    for module in pkgutil.walk_packages(av.__path__, "av."):
        if not module.name.endswith(("__main__", ".datasets")):
            importlib.import_module(module.name)


if __name__ == "__main__":
    main()
