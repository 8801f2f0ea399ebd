"""People's clips are decoded in a process of their own, one a clip, that can do nothing else (`sandbox.py`).

What goes in and what comes out are two files in memory: a line of JSON, then bytes. Nothing is unpickled, and what
comes back is checked like anything foreign.
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
from services.clip_player.clip_decoder import ClipLimits, decode_clip, refused
from services.frame_fifo.camera_decoder import SampledFrame
from services.messages.video import ClipRefused
from services.ports.frame_store import parse_frame_id
from services.processes.child_processes import end_process, spawn

START_S = 20.0  # until the process is ready to decode, on a busy machine
JPEG_BYTES = 2**20  # of one small picture; far more than any has
MAX_MESSAGE = 400  # characters
SHUT_IN = 3  # exit status: the process could not be shut in, so it did nothing

log = logging.getLogger(__name__)


def decode_apart(
    media: bytes, kind: str, limits: ClipLimits, *, end_s: float, memory_bytes: int
) -> list[SampledFrame]:
    """As decode_clip, in a process of its own with at most `memory_bytes`. Blocks. ClipRefused, also for a crash."""
    with memory_file("clip") as given, memory_file("frames") as made:
        task = {"kind": kind, "limits": asdict(limits), "end_s": end_s, "memory_bytes": memory_bytes}
        given.write(json.dumps(task).encode() + b"\n" + media)
        given.seek(0)
        process = spawn(
            [sys.executable, "-m", "services.clip_player.clip_process"],
            environment={"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OPENBLAS_NUM_THREADS": "1"},
            stdin=given,
            stdout=made,
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
            raise ended_badly(status, limits)
        made.seek(0)
        try:
            return frames_from(made, limits)
        except (ValueError, LookupError, TypeError, RecursionError) as error:  # it may have been taken over
            log.warning("the process of a clip answered nonsense: %s", error)
            raise ended_badly(0, limits) from error


def ended_badly(status: int, limits: ClipLimits) -> Exception:
    """What to tell of a process that ended without an answer."""
    if status == SHUT_IN:
        return OSError("clips cannot be decoded here: the kernel confines no process (seccomp)")
    if status != 0:
        log.warning("the process of a clip ended with status %d", status)
    if status == -signal.SIGXCPU:
        return refused("too_slow", f"the clip takes more than {limits.decode_budget_s:.0f} s to decode")
    return refused("crashed", "the clip could not be decoded within its limits: it is damaged, or too large")


def memory_file(name: str) -> IO[bytes]:
    """A file without a name on any disk, which ends with its last reader."""
    return os.fdopen(os.memfd_create(name), "w+b")


def frames_from(file: IO[bytes], limits: ClipLimits) -> list[SampledFrame]:
    """What the process made. ClipRefused when it says so; another error when it is not what was wanted."""
    head = json.loads(file.readline(2**20))
    if "refused" in head:
        code, message = head["refused"]
        raise ClipRefused(400, str(code)[:40], str(message)[:MAX_MESSAGE])
    rows = head["frames"]
    if not 0 < len(rows) <= limits.capacity:
        raise ValueError(f"decoded clip: got {len(rows)} frames, wanted 1 to {limits.capacity}")
    return [frame_from(file, row, limits.image_size) for row in rows]


def frame_from(file: IO[bytes], row: Any, image_size: int) -> SampledFrame:
    """The next frame of the file."""
    parse_frame_id(row["id"])
    if not 0 < row["jpeg"] <= JPEG_BYTES:
        raise ValueError(f"decoded clip: got a picture of {row['jpeg']} bytes, wanted at most {JPEG_BYTES}")
    pixels, jpeg = file.read(3 * image_size**2), file.read(row["jpeg"])
    if (len(pixels), len(jpeg)) != (3 * image_size**2, row["jpeg"]):
        raise ValueError("decoded clip: got fewer bytes than it said")
    return SampledFrame(frame_id=row["id"], captured_s=float(row["captured_s"]), pixels=pixels, picture=jpeg)


def main() -> None:
    """The process: take the clip, be shut in, decode, answer."""
    from services.clip_player.sandbox import shut_in

    task = json.loads(sys.stdin.buffer.readline())
    media = sys.stdin.buffer.read()
    limits = ClipLimits(**task["limits"])
    warm_up(limits.image_size)
    try:
        shut_in(
            memory_bytes=task["memory_bytes"],
            cpu_s=limits.decode_budget_s,
            written_bytes=limits.capacity * (3 * limits.image_size**2 + JPEG_BYTES) + 2**20,
        )
    except OSError:
        os._exit(SHUT_IN)
    try:
        frames = decode_clip(media, task["kind"], limits, end_s=task["end_s"])
    except ClipRefused as refusal:
        answer, frames, pictures = {"refused": [refusal.code, refusal.message]}, [], []
    else:
        pictures = [frame.jpeg() for frame in frames]
        rows = [
            {"id": frame.frame_id, "captured_s": frame.captured_s, "jpeg": len(picture)}
            for frame, picture in zip(frames, pictures, strict=True)
        ]
        answer = {"frames": rows}
    out = sys.stdout.buffer
    out.write(json.dumps(answer).encode() + b"\n")
    for frame, picture in zip(frames, pictures, strict=True):
        out.write(frame.pixels)
        out.write(picture)
    out.flush()
    os._exit(0)  # nothing is to be tidied up, and little of it could be


def warm_up(image_size: int) -> None:
    """Load all that decoding loads only when it is first used: no file can be opened later."""
    import av
    from PIL import GifImagePlugin, Image, PngImagePlugin, WebPImagePlugin

    from services.frame_fifo.camera_decoder import sampled_frame

    _ = (GifImagePlugin, PngImagePlugin, WebPImagePlugin)
    for kind in ("PNG", "GIF", "WEBP", "JPEG"):
        out = io.BytesIO()
        Image.new("RGB", (8, 8)).save(out, kind)
        with Image.open(io.BytesIO(out.getvalue()), formats=[kind]) as image:
            picture = av.VideoFrame.from_image(image.convert("RGB"))
    sampled_frame(picture, 1.0, 0, image_size).jpeg()
    for module in pkgutil.walk_packages(av.__path__, "av."):
        if not module.name.endswith(("__main__", ".datasets")):
            importlib.import_module(module.name)


if __name__ == "__main__":
    main()
