"""Clips in a process of their own: the same frames as here; attacks are contained and counted."""

from __future__ import annotations

import base64
import io
import json
import os
import re
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import httpx
import pytest
from PIL import Image

from model.config import preset
from services.clip_player.clip_decoder import ClipLimits, decode_clip
from services.clip_player.clip_player import ClipPlayer
from services.clip_player.clip_process import decode_in_process, read_frames
from services.gateway.gateway import make_app
from services.messages.video import ClipRefused, VisualTokens
from services.processes.child_processes import spawn
from services.settings import Settings
from tests.services.adapters.memory_frame_store import MemoryFrameStore
from tests.services.attack_files import bait, bombs, damaged_videos, fetchers, foreign_codecs
from tests.services.h264 import clip, jpeg_held_sideways, picture
from tests.services.served_gateway import MODEL, ScriptedDecoder, listening

END_S = 1_800_000_000.0
LIMITS = ClipLimits(
    frames_per_second=5.0, capacity=16, image_size=48, max_pixels=4096 * 2304, max_bytes=24 * 2**20
)


def decode_apart(media: bytes, kind: str = "video", *, memory_bytes: int = 2**31, **limits: Any) -> Any:
    wanted = ClipLimits(**{**{name: getattr(LIMITS, name) for name in LIMITS.__slots__}, **limits})
    return decode_in_process(media, kind, wanted, end_s=END_S, memory_bytes=memory_bytes)


@pytest.mark.parametrize(
    ("container", "codec"),
    [
        ("mp4", "libx264"),
        ("matroska", "libx265"),
        ("avi", "mjpeg"),
        ("webm", "libvpx"),
        ("webm", "libvpx-vp9"),
        ("mp4", "libsvtav1"),
        ("mp4", "mpeg4"),
    ],
)
def test_the_frames_are_those_of_decoding_here(container: str, codec: str) -> None:
    media = clip(30, container=container, codec=codec)
    here = decode_clip(media, "video", LIMITS, end_s=END_S)
    assert decode_apart(media) == [replace(frame, picture=frame.jpeg()) for frame in here]


def test_a_refusal_is_that_of_decoding_here() -> None:
    with pytest.raises(ClipRefused) as here:
        decode_clip(b"no clip", "video", LIMITS, end_s=END_S)
    with pytest.raises(ClipRefused) as there:
        decode_apart(b"no clip")
    assert there.value.args == here.value.args


def test_a_clip_that_takes_too_long_is_ended() -> None:
    with pytest.raises(ClipRefused) as refused:
        decode_apart(clip(300, size=(1280, 720)), decode_budget_s=0.01)
    assert refused.value.code == "clip_too_slow"


@pytest.mark.parametrize("memory_bytes", [2**20, 2**27])  # the decoder refuses, or its process falls over
def test_a_clip_that_takes_too_much_memory_ends_alone(memory_bytes: int) -> None:
    with pytest.raises(ClipRefused) as refused:
        decode_apart(clip(30), memory_bytes=memory_bytes)
    assert refused.value.code in ("clip_unreadable", "clip_crashed")
    assert len(decode_apart(clip(30))) == 10


def test_no_secret_of_ours_is_in_its_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    monkeypatch.setenv("STREAMCHAT_REDIS_PASSWORD", "hunter2")

    def recorded(*command: Any, **options: Any) -> Any:
        seen.append(options["environment"])
        return spawn(*command, **options)

    monkeypatch.setattr("services.clip_player.clip_process.spawn", recorded)
    assert decode_apart(clip(3))
    assert set(seen[0]) == {"PYTHONPATH", "OPENBLAS_NUM_THREADS"}


@pytest.mark.parametrize(
    "head",
    [
        b"",
        b"no json\n",
        b"[]\n",
        b'{"frames": []}\n',
        json.dumps({"frames": [{"id": "1-1", "captured_s": 1.0, "jpeg": 4}] * 17}).encode() + b"\n",
        json.dumps({"frames": [{"id": "../..", "captured_s": 1.0, "jpeg": 4}]}).encode() + b"\n",
        json.dumps({"frames": [{"id": "1-1", "captured_s": 1.0, "jpeg": 2**40}]}).encode() + b"\n",
        json.dumps({"frames": [{"id": "1-1", "captured_s": 1.0, "jpeg": -1}]}).encode() + b"\n",
        json.dumps({"frames": [{"id": "1-1", "captured_s": 1.0, "jpeg": 4}]}).encode() + b"\n" + bytes(9),
        b'{"frames": ' + b"[" * 2**21,
    ],
    ids=lambda value: str(value)[:30],
)
def test_what_comes_back_is_checked(head: bytes) -> None:
    # A hostile clip may control the process.
    with pytest.raises((ValueError, TypeError, RecursionError)):
        read_frames(io.BytesIO(head), LIMITS)


# -- attacks, through the gateway --


class Served:
    """A gateway with a real ClipPlayer behind it."""

    def __init__(self, http: httpx.Client) -> None:
        self.http = http

    def ask(self, media: bytes, kind: str) -> httpx.Response:
        uri = f"data:{kind}/x;base64,{base64.b64encode(media).decode()}"
        content = [
            {"type": f"{kind}_url", f"{kind}_url": {"url": uri}},
            {"type": "text", "text": "What is it?"},
        ]
        return self.http.post(
            "/v1/chat/completions", json={"model": MODEL, "messages": [{"role": "user", "content": content}]}
        )

    def num_refused(self) -> float:
        found = re.findall(
            r'^streamchat_request_errors_total\{code="clip_\w+".*\} (\S+)$',
            self.http.get("/metrics").text,
            re.MULTILINE,
        )
        return sum(map(float, found))


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    async def encode(pictures: list[bytes]) -> list[VisualTokens]:
        return [VisualTokens(shape=(1, 3), dtype="uint8", data=p[:3]) for p in pictures]

    store, settings = MemoryFrameStore(), Settings(access="open")
    player = ClipPlayer(settings, preset("tiny"), store, encode)
    app = make_app(settings, MODEL, store, ScriptedDecoder(store).decode, player.play)
    with listening(app) as url, httpx.Client(base_url=url, timeout=100, trust_env=False) as http:
        yield Served(http)


def test_files_that_name_addresses_fetch_nothing(served: Served) -> None:
    before = served.num_refused()
    with bait() as trap:
        files = fetchers(trap.url)
        for name, media in files.items():
            for kind in ("video", "image"):
                answer = served.ask(media, kind)
                error = answer.json()["error"]
                assert (answer.status_code, error["code"]) == (400, "clip_unreadable"), name
                assert "127.0.0.1" not in error["message"]
                assert "passwd" not in error["message"]
        assert trap.num_visits == 0
    assert served.num_refused() - before == 2 * len(files)


def test_decoders_that_nobody_needs_never_run(served: Served) -> None:
    before, files = served.num_refused(), foreign_codecs()
    for name, (kind, media) in files.items():
        answer = served.ask(media, kind)
        assert answer.status_code == 400, name
        assert answer.json()["error"]["code"] in ("clip_unreadable", "clip_codec"), name
    assert served.num_refused() - before == len(files)


def test_bombs_harm_nobody(served: Served) -> None:
    before, memory_before = served.num_refused(), resident_bytes()
    num_refused = 0
    for name, (kind, media) in bombs().items():
        began = time.monotonic()
        answer = served.ask(media, kind)
        assert time.monotonic() - began < 60
        assert answer.status_code in (200, 400), name
        num_refused += answer.status_code == 400
    assert num_refused >= 5
    assert served.num_refused() - before == num_refused
    assert resident_bytes() - memory_before < 300 * 2**20
    assert served.ask(clip(10), "video").status_code == 200


def test_damaged_videos_harm_nobody(served: Served) -> None:
    for name, media in damaged_videos().items():
        answer = served.ask(media, "video")
        assert answer.status_code in (200, 400), name
        if answer.status_code == 400:
            assert answer.json()["error"]["code"].startswith("clip_")
    assert served.ask(clip(10), "video").status_code == 200


def resident_bytes() -> int:
    with open("/proc/self/statm") as file:  # noqa: PTH123
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_a_picture_is_turned_in_the_sandbox_too() -> None:
    sideways = jpeg_held_sideways(picture(0))
    (frame,) = decode_apart(sideways, "image")
    assert Image.open(io.BytesIO(frame.jpeg())).size == (120, 160)
