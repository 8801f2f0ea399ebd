"""Pictures and clips sent with the question, valid and broken, through the whole stack."""

from __future__ import annotations

import base64
import io
from typing import Any

import av
import numpy as np
import openai
import pytest
from PIL import Image

from tests.live.clients.live_stack import MODEL, LiveStack, question_about, tokens_of
from tests.services.h264 import clip, picture

pytestmark = [pytest.mark.timeout(400), pytest.mark.usefixtures("undisturbed")]


def part(kind: str, url: str) -> dict[str, Any]:
    return {"type": f"{kind}_url", f"{kind}_url": {"url": url}}


def data_uri(media: bytes, media_type: str) -> str:
    return f"data:{media_type};base64,{base64.b64encode(media).decode()}"


def as_picture(kind: str, image: Image.Image) -> bytes:
    out = io.BytesIO()
    image.save(out, kind)
    return out.getvalue()


def huge_picture() -> bytes:
    """12000x12000 pixels in a few kilobytes."""
    return as_picture("PNG", Image.new("1", (12_000, 12_000)))


def only_sound() -> bytes:
    """An MP4 of a second's silence."""
    out = io.BytesIO()
    with av.open(out, "w", format="mp4") as file:
        stream = file.add_stream("aac", rate=16_000, layout="mono")
        for at in range(0, 16_000, 1000):
            sound = av.AudioFrame.from_ndarray(np.zeros((1, 1000), np.float32), format="fltp", layout="mono")
            sound.sample_rate, sound.pts = 16_000, at
            file.mux(stream.encode(sound))
        file.mux(stream.encode(None))
    return out.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_a_picture_is_answered(live: LiveStack, kind: str) -> None:
    uri = data_uri(as_picture(kind, Image.fromarray(picture(3))), f"image/{kind.lower()}")
    with live.client() as client:
        answer = client.chat.completions.create(
            model=MODEL, messages=question_about(part("image", uri)), max_tokens=5
        )
    assert answer.choices[0].message.content
    assert len({token["frame_id"] for token in tokens_of(answer)}) == 1
    assert [token["frame_age_ms"] for token in tokens_of(answer)] == [0.0] * 5


def test_a_clip_is_answered_from_its_end(live: LiveStack) -> None:
    uri = data_uri(clip(45), "video/mp4")
    with live.client() as client:
        stream = client.chat.completions.create(
            model=MODEL, messages=question_about(part("video", uri)), max_tokens=5, stream=True
        )
        tokens = [token for chunk in stream for token in tokens_of(chunk)]
        known = live.cameras()
    assert len(tokens) == 5
    assert [token["frame_age_ms"] for token in tokens] == [0.0] * 5
    assert [token["stale"] for token in tokens] == [False] * 5
    assert not [camera for camera in known if camera.startswith("clip-")]  # a clip is private


@pytest.mark.parametrize(
    ("kind", "url", "code"),
    [
        ("video", "http://127.0.0.1/clip.mp4", "url_not_fetched"),
        ("image", "https://127.0.0.1/cat.png", "url_not_fetched"),
        ("video", "file:///etc/passwd", "invalid_url"),
        ("image", "camera://door", "invalid_url"),
        ("video", "data:video/mp4;base64,!!!!", "invalid_data_uri"),
        ("video", "data:video/mp4;base64,", "invalid_data_uri"),
        ("video", "data:video/mp4,plain", "invalid_data_uri"),
        ("video", data_uri(as_picture("PNG", Image.new("RGB", (9, 9))), "image/png"), "invalid_data_uri"),
        ("image", data_uri(b"hello", "text/plain"), "invalid_data_uri"),
        ("image", data_uri(bytes(range(256)) * 9, "image/png"), "clip_unreadable"),
        ("image", data_uri(huge_picture(), "image/png"), "clip_picture_too_large"),
        ("video", data_uri(bytes(range(256)) * 99, "video/mp4"), "clip_unreadable"),
        ("video", data_uri(clip(30)[:2000], "video/mp4"), "clip_unreadable"),
        ("video", data_uri(only_sound(), "video/mp4"), "clip_no_video"),
        ("video", data_uri(clip(1, size=(4800, 2600)), "video/mp4"), "clip_picture_too_large"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_clip_that_cannot_be_used_is_refused(live: LiveStack, kind: str, url: str, code: str) -> None:
    with live.client() as client, pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model=MODEL, messages=question_about(part(kind, url)), max_tokens=5)
    assert caught.value.code == code
    assert caught.value.param == f"messages[0].content[0].{kind}_url.url"


def test_a_body_that_is_too_large_is_refused(live: LiveStack) -> None:
    uri = data_uri(bytes(25 * 2**20), "video/mp4")
    with live.client() as client, pytest.raises(openai.APIStatusError) as caught:
        client.chat.completions.create(model=MODEL, messages=question_about(part("video", uri)), max_tokens=5)
    assert (caught.value.status_code, caught.value.code) == (413, "request_too_large")
