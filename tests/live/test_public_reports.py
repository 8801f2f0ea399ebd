"""What people reported of neighbouring systems, and what they would expect here. Each case names its report."""

from __future__ import annotations

import base64
import io
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Any

import av
import httpx
import numpy as np
import numpy.typing as npt
import pytest
from confluent_kafka import Producer
from PIL import Image

from services.messages.video import VideoPacket
from tests.live.clients.kafka_camera import FPS, SILENT, DeadLetters, KafkaCamera, new_packets
from tests.live.clients.live_stack import (
    MODEL,
    PATIENCE_S,
    LiveStack,
    camera_part,
    eventually,
    question_about,
)
from tests.services.h264 import encoded, picture

pytestmark = [pytest.mark.timeout(400), pytest.mark.usefixtures("undisturbed")]

NUM_PACKETS = 2 * FPS  # of a KafkaCamera, again and again
CALL = {"id": "call_1", "type": "function", "function": {"name": "get_weather", "arguments": "{}"}}
ASK = question_about(camera_part("door"))


def ask(live: LiveStack, messages: Sequence[dict[str, Any]]) -> httpx.Response:
    body = {"model": MODEL, "max_tokens": 3, "messages": list(messages)}
    return httpx.post(f"{live.url}/v1/chat/completions", json=body, timeout=PATIENCE_S, trust_env=False)


@pytest.mark.parametrize(
    "before",
    [
        # github.com/8monkey-ai/hebo-gateway/issues/251: instructions come as `developer`
        pytest.param([{"role": "developer", "content": "Be brief."}], id="developer"),
        # github.com/lmstudio-ai/lmstudio-bug-tracker/issues/261: a turn that only called a tool, and its result
        pytest.param(
            [
                {"role": "user", "content": "What is the weather?"},
                {"role": "assistant", "content": None, "tool_calls": [CALL]},
                {"role": "tool", "tool_call_id": "call_1", "content": "Sunny."},
            ],
            id="tool-call",
        ),
        # github.com/jekalmin/extended_openai_conversation/pull/456: the same without the key `content`
        pytest.param(
            [
                {"role": "user", "content": "What is the weather?"},
                {"role": "assistant", "tool_calls": [CALL]},
                {"role": "tool", "tool_call_id": "call_1", "content": [{"type": "text", "text": "Sunny."}]},
            ],
            id="no-content",
        ),
        # github.com/tashfeenahmed/freellmapi/issues/165: a turn of which nothing was heard is sent again
        pytest.param(
            [{"role": "user", "content": "Hello?"}, {"role": "assistant", "content": ""}], id="empty-turn"
        ),
        pytest.param(
            [{"role": "user", "content": "Hello?"}, {"role": "assistant", "content": None}], id="null-turn"
        ),
    ],
)
def test_a_clients_history_is_taken(live: LiveStack, before: list[dict[str, Any]]) -> None:
    reply = ask(live, [*before, *ASK])
    assert reply.status_code == 200, reply.text
    assert reply.json()["choices"][0]["message"]["content"]


# github.com/dmMaze/BallonsTranslator/pull/1205 (LA), github.com/pytorch/vision/pull/2988 (CMYK),
# github.com/python-pillow/Pillow/issues/7651 (a palette with alpha)
@pytest.mark.parametrize(
    ("mode", "form"),
    [("L", "PNG"), ("LA", "PNG"), ("P", "PNG"), ("RGBA", "WEBP"), ("1", "PNG"), ("I;16", "PNG"), ("CMYK", "JPEG"),
     ("P", "GIF")],
)  # fmt: skip
def test_a_picture_of_any_mode_is_seen(live: LiveStack, mode: str, form: str) -> None:
    made = Image.fromarray(picture(0))
    made = made.convert("L").convert("I").convert(mode) if mode == "I;16" else made.convert(mode)
    file = io.BytesIO()
    made.save(file, form)
    url = f"data:image/{form.lower()};base64,{base64.b64encode(file.getvalue()).decode()}"
    reply = ask(live, question_about({"type": "image_url", "image_url": {"url": url}}))
    assert reply.status_code == 200, reply.text


class Units:
    """A camera's own access units, in the place of those that a KafkaCamera sends."""

    def __init__(self, units: Sequence[bytes], *, codec: str = "h264", keyframes: int = FPS) -> None:
        assert len(units) == NUM_PACKETS
        self._units, self._codec, self._keyframes = units, codec, keyframes

    def __call__(self, packet: VideoPacket) -> VideoPacket:
        number = packet.seq % NUM_PACKETS
        is_keyframe = number % self._keyframes == 0
        return replace(packet, codec=self._codec, keyframe=is_keyframe, data=self._units[number])


def newest_picture(live: LiveStack, camera: str) -> npt.NDArray[np.uint8]:
    reply = httpx.get(f"{live.url}/v1/cameras/{camera}/frame.jpg", timeout=PATIENCE_S, trust_env=False)
    assert reply.status_code == 200, reply.text
    return np.asarray(Image.open(io.BytesIO(reply.content)).convert("RGB"))


def without_huffman_tables(jpeg: bytes) -> bytes:
    """Leaves out the DHT segments, as webcams do that rely on the standard's own tables."""
    data, at = jpeg[:2], 2
    while jpeg[at + 1] != 0xDA:  # start of scan
        end = at + 2 + int.from_bytes(jpeg[at + 2 : at + 4], "big")
        data += b"" if jpeg[at + 1] == 0xC4 else jpeg[at:end]
        at = end
    return data + jpeg[at:]


def test_a_webcams_pictures_need_no_huffman_tables(live: LiveStack) -> None:
    """github.com/etemesi254/zune-image/issues/136, github.com/AlexxIT/go2rtc/pull/2439"""
    jpegs: list[bytes] = []
    for number in range(NUM_PACKETS):
        file = io.BytesIO()
        Image.fromarray(picture(number)).save(file, "JPEG", quality=90, subsampling="4:2:2")
        jpegs.append(without_huffman_tables(file.getvalue()))
    assert b"\xff\xc4" not in jpegs[0][:200]
    with KafkaCamera(live.kafka, "usb-webcam", change=Units(jpegs, codec="mjpeg", keyframes=1)):
        live.wait_for_frames("usb-webcam")
        shown = newest_picture(live, "usb-webcam")
        assert shown[40, :, 0].max() > 180  # the red square


@pytest.mark.parametrize("codec", ["libx264", "libx265"])
def test_a_size_that_the_codec_pads_has_no_green_edge(live: LiveStack, codec: str) -> None:
    """github.com/Vanilagy/mediabunny/issues/302, github.com/jcodec/jcodec/issues/154"""
    units = encoded(NUM_PACKETS, codec=codec, fps=FPS, gop=FPS, size=(170, 130))
    name = {"libx264": "h264", "libx265": "hevc"}[codec]
    with KafkaCamera(live.kafka, f"padded-{name}", change=Units([bytes(unit) for unit in units], codec=name)):
        live.wait_for_frames(f"padded-{name}")
        shown = newest_picture(live, f"padded-{name}").astype(int)
        assert shown.shape == (130, 170, 3)
        for edge in (shown[:, -2:], shown[-2:]):
            assert abs(edge[..., 1] - edge[..., 0]).max() < 30  # grey noise
            assert edge.min() > 20


def full_range_units() -> list[bytes]:
    """A dark grey that limited range would show darker."""
    encoder: Any = av.CodecContext.create("libx264", "w")
    encoder.width, encoder.height, encoder.pix_fmt = 160, 120, "yuvj420p"
    encoder.time_base, encoder.framerate, encoder.gop_size = Fraction(1, FPS), Fraction(FPS), FPS
    encoder.options = {"preset": "veryfast", "tune": "zerolatency"}
    packets: list[av.Packet] = []
    for number in range(NUM_PACKETS):
        frame = av.VideoFrame(160, 120, "yuvj420p")
        for plane, value in zip(frame.planes, (24, 128, 128), strict=True):
            plane.update(bytes([value]) * plane.buffer_size)
        frame.pts = number
        packets += encoder.encode(frame)
    return [bytes(packet) for packet in [*packets, *encoder.encode(None)]]


def test_full_range_video_keeps_its_shades(live: LiveStack) -> None:
    """github.com/blakeblackshear/frigate/issues/4099"""
    with KafkaCamera(live.kafka, "full-range", change=Units(full_range_units())):
        live.wait_for_frames("full-range")
        assert abs(newest_picture(live, "full-range").astype(int) - 24).max() <= 3


def test_a_camera_that_never_sends_its_pps_is_named(live: LiveStack, dead_letters: DeadLetters) -> None:
    """github.com/paxx12-snapmaker-u1/SnapmakerU1-Extended-Firmware/issues/644"""

    def without_pps(packet: VideoPacket) -> VideoPacket:
        units = re.split(rb"\x00?\x00\x00\x01", packet.data)
        return replace(packet, data=b"".join(b"\0\0\0\1" + one for one in units if one and one[0] & 31 != 8))

    with KafkaCamera(live.kafka, "no-pps", change=without_pps):
        assert "cannot be decoded" in dead_letters.reason("no-pps", PATIENCE_S)


@pytest.fixture
def producer(live: LiveStack) -> Iterator[Producer]:
    made = Producer({"bootstrap.servers": live.kafka, **SILENT})
    yield made
    assert made.flush(10.0) == 0


Headers = list[tuple[str, str | bytes | None]]


def send_with(producer: Producer, camera: str, change: Callable[[Headers], Headers]) -> None:
    """Send two seconds of a camera whose headers are changed."""
    for packet in new_packets(camera, num_frames=NUM_PACKETS):
        headers: Headers = [
            ("codec", b"h264"),
            ("keyframe", b"1" if packet.keyframe else b"0"),
            ("pts", str(packet.pts).encode()),
            ("time_base", f"{packet.time_base[0]}/{packet.time_base[1]}".encode()),
            ("seq", str(packet.seq).encode()),
        ]
        producer.produce(
            "cameras",
            key=camera.encode(),
            value=packet.data,
            headers=change(headers),
            timestamp=round(time.time() * 1000),
        )


# github.com/vert-x3/vertx-kafka-client/issues/313, github.com/DataDog/dd-trace-js/issues/3063 (null values),
# github.com/chutney-testing/chutney-legacy/issues/296, github.com/quarkusio/quarkus/pull/50988 (the same one twice)
@pytest.mark.parametrize(
    ("camera", "change"),
    [
        ("null-header", lambda headers: [("trace", None), *headers, ("", b"")]),
        ("twice-header", lambda headers: [*headers, *headers, ("trace", b"1"), ("trace", b"2")]),
    ],
)
def test_headers_that_others_add_do_no_harm(
    live: LiveStack, producer: Producer, camera: str, change: Callable[[Headers], Headers]
) -> None:
    send_with(producer, camera, change)
    eventually(lambda: live.has_frames(camera), "its frames are not read")


def test_a_header_of_ours_without_a_value_is_named(
    live: LiveStack, producer: Producer, dead_letters: DeadLetters
) -> None:
    send_with(producer, "null-codec", lambda headers: [("codec", None), *headers[1:]])
    assert "codec" in dead_letters.reason("null-codec", PATIENCE_S)
    assert not live.has_frames("null-codec")
