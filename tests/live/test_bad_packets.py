"""Cameras that send unusable packets: each is a dead letter with a reason, and other cameras are not disturbed."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import replace

import httpx
import numpy as np
import openai
import pytest
from confluent_kafka import Producer

from services.messages.video import VideoPacket
from tests.live.clients.kafka_camera import SILENT, DeadLetters, KafkaCamera, new_packets, send
from tests.live.clients.live_stack import (
    MODEL,
    PATIENCE_S,
    LiveStack,
    camera_part,
    eventually,
    question_about,
)
from tests.services.h264 import mjpeg_bomb

pytestmark = [pytest.mark.timeout(400), pytest.mark.usefixtures("undisturbed")]

NOISE = np.random.default_rng(0).integers(0, 256, 5000, dtype=np.uint8).tobytes()
DAY_S = 86_400.0


def cut(packet: VideoPacket) -> VideoPacket:
    return replace(packet, data=packet.data[: len(packet.data) // 2])


@pytest.mark.parametrize(
    ("camera", "change", "headers", "reason"),
    [
        ("truncated", cut, {}, "access unit: cannot be decoded as h264"),
        ("noise", lambda p: replace(p, data=NOISE), {}, "access unit: cannot be decoded as h264"),
        ("not-jpeg", lambda p: replace(p, codec="mjpeg"), {}, "access unit: cannot be decoded as mjpeg"),
        ("huge", lambda p: replace(p, codec="mjpeg", data=mjpeg_bomb(12_000)), {}, "too large: got 12000x12000"),
        ("vp9", lambda p: p, {"codec": b"vp9"}, r"codec: got 'vp9', wanted one of h264, hevc, mjpeg"),
        ("no-number", lambda p: p, {"pts": b"soon"}, "header pts: got 'soon', wanted a whole number"),
        ("no-fraction", lambda p: p, {"time_base": b"1/0"}, "header time_base: got '1/0', wanted"),
        ("odd camera", lambda p: p, {}, "camera id .key.: got 'odd camera', wanted"),
        ("tomorrow", lambda p: replace(p, captured_s=p.captured_s + DAY_S), {}, "capture time: .* in the future"),
        ("yesterday", lambda p: replace(p, captured_s=p.captured_s - DAY_S), {}, "capture time: .* in the past"),
        ("year-1970", lambda p: replace(p, captured_s=1.0), {}, "timestamp: got 1000, wanted the capture time"),
        ("year-2500", lambda p: replace(p, captured_s=16_725_225_600.0), {}, "timestamp: got .*, wanted"),
    ],
)  # fmt: skip
def test_a_packet_that_cannot_be_used_becomes_a_dead_letter(
    live: LiveStack,
    dead_letters: DeadLetters,
    camera: str,
    change: Callable[[VideoPacket], VideoPacket],
    headers: dict[str, bytes],
    reason: str,
) -> None:
    producer = Producer({"bootstrap.servers": live.kafka, **SILENT})
    packet = new_packets("camera")[0]
    send(producer, "cameras", replace(change(packet), camera=camera), **headers)
    assert producer.flush(10.0) == 0
    assert re.search(reason, dead_letters.reason(camera, PATIENCE_S))
    assert not live.has_frames(camera)


def test_a_camera_with_a_truncated_packet_goes_on_with_the_next_keyframe(
    live: LiveStack, dead_letters: DeadLetters
) -> None:
    def change(packet: VideoPacket) -> VideoPacket:
        return cut(packet) if packet.seq == 20 else packet

    with KafkaCamera(live.kafka, "shaky", change=change):
        assert "cannot be decoded" in dead_letters.reason("shaky", PATIENCE_S)
        over_s = time.time()
        eventually(lambda: live.cameras()["shaky"]["newest_captured_s"] > over_s, "it did not go on")


def test_a_camera_without_a_frame_gives_another_error_than_an_unknown_one(live: LiveStack) -> None:
    def without_keyframes(packet: VideoPacket) -> VideoPacket:
        return replace(packet, keyframe=False)

    def refusal() -> str | None:
        with live.client() as client, pytest.raises(openai.APIStatusError) as caught:
            client.chat.completions.create(
                model=MODEL, messages=question_about(camera_part("blind")), max_tokens=5
            )
        refusals.append(caught.value)
        return caught.value.code

    refusals: list[openai.APIStatusError] = []
    with KafkaCamera(live.kafka, "blind", change=without_keyframes):
        eventually(lambda: refusal() == "no_frame", "it stayed unknown")
        assert isinstance(refusals[-1], openai.ConflictError)
        assert {one.code for one in refusals} <= {"unknown_camera", "no_frame"}
        picture = httpx.get(f"{live.url}/v1/cameras/blind/frame.jpg", timeout=PATIENCE_S, trust_env=False)
        assert (picture.status_code, picture.json()["error"]["code"]) == (409, "no_frame")
        assert picture.headers["retry-after"] == "1"
        assert not live.has_frames("blind")
