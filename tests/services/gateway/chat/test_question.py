"""From messages to one thing to look at."""

from __future__ import annotations

import base64
from typing import Any
from urllib.parse import quote

import pytest

from services.gateway.chat.question import (
    VisualSource,
    camera_named,
    check_text,
    media_of,
    messages_of,
    visual_source,
)
from services.gateway.chat.request import ChatRequest, parse_request
from services.messages.api_error import ApiError
from services.messages.dialog import Message


def source(url: str, kind: str = "video") -> VisualSource:
    return VisualSource(url=url, kind=kind, param="here")


def chat(*urls: str | None) -> ChatRequest:
    """A user message for each url, asking about it (None: words only)."""
    parts = [[{"type": "video_url", "video_url": {"url": url}}] if url else [] for url in urls]
    text = {"type": "text", "text": "?"}
    return parse_request(
        {"model": "m", "messages": [{"role": "user", "content": [*part, text]} for part in parts]}
    )[0]


def test_the_newest_message_that_shows_something_wins() -> None:
    found = visual_source(chat("camera://a", "camera://b", None).messages)
    assert found is not None
    assert found.url == "camera://b"
    assert visual_source(chat(None, None).messages) is None


@pytest.mark.parametrize(
    ("url", "camera"),
    [
        ("camera://front-door", "front-door"),
        ("CAMERA://front-door/", "front-door"),
        ("camera://yard%2Fgate%20%C3%BC", "yard-gate-u"),  # by its name
        ("camera://yard/gate", "yard-gate"),
        ("data:video/mp4;base64,AAAA", None),
    ],
)
def test_cameras_are_named_by_url(url: str, camera: str | None) -> None:
    assert camera_named(source(url)) == camera


@pytest.mark.parametrize(
    "url", ["", "front-door", "camera:front-door", "rtsp://host/x", "ftp://x", "javascript:x"]
)
def test_other_urls_are_refused(url: str) -> None:
    with pytest.raises(ApiError, match="invalid_url"):
        camera_named(source(url))


def test_a_data_uris_bytes_are_read() -> None:
    media = bytes(range(256))
    text = base64.b64encode(media).decode()
    assert media_of(source(f"data:video/mp4;base64,{text}")) == media
    assert media_of(source(f"data:video/mp4;codecs=avc1.4d;base64,{text}")) == media
    assert media_of(source(f"data:image/svg+xml;base64,{text}", "image")) == media


def variants(media: bytes) -> dict[str, str]:
    """Data URIs of one picture, as clients of many languages and shells make them."""
    plain = base64.b64encode(media).decode()
    lines = [plain[at : at + 76] for at in range(0, len(plain), 76)]
    return {
        "line feeds": "data:image/jpeg;base64," + "\n".join(lines) + "\n",
        "as mail has them": "data:image/jpeg;base64," + "\r\n".join(lines),
        "indented": "data:image/jpeg;base64,\n\t" + "\n\t".join(lines),
        "capitals": "DATA:Image/JPEG;BASE64," + plain,
        "a file name": "data:image/jpeg;name=a b.jpg;base64," + plain,
        "a character set": "data:image/jpeg;charset=utf-8;base64," + plain,
        "spaces": "  data:image/jpeg; base64, " + plain + " ",
        "no padding": "data:image/jpeg;base64," + plain.rstrip("="),
        "safe in URLs": "data:image/jpeg;base64," + base64.urlsafe_b64encode(media).decode(),
        "percent-encoded": "data:image/jpeg;base64," + quote(plain, safe=""),
        "percent-encoded lines": "data:image/jpeg;base64," + "%0d%0A".join(lines),
    }


PICTURE = bytes(range(256)) + b"\xfb\xff\xfe"


@pytest.mark.parametrize("name", variants(PICTURE))
def test_data_uris_are_read_as_a_browser_reads_them(name: str) -> None:
    chat, _ = parse_request(
        {
            "model": "m",
            "messages": [
                {
                    "role": "user",
                    "content": [{"type": "image_url", "image_url": {"url": variants(PICTURE)[name]}}],
                }
            ],
        }
    )
    found = visual_source(chat.messages)
    assert found is not None
    assert camera_named(found) is None
    assert media_of(found) == PICTURE


def test_a_header_of_a_data_uri_is_read_in_linear_time() -> None:
    with pytest.raises(ApiError, match="invalid_data_uri"):
        media_of(source("data:video/mp4" + ";   " * 10_000 + "x", "video"))


@pytest.mark.parametrize(
    "url",
    [
        "data:video/mp4;base64,AAAA%00",
        "data:video/mp4;base64,AA==AA",
        "data:video/mp4;base64,ÄÄÄÄ",
        "data:video/mp4;base64",
        "data:video/mp4,AAAA",
        "data:;base64,AAAA",
        "data:text/plain;base64,AAAA",
        "data:video/mp4;base64,A",
        "data:",
    ],
)
def test_broken_data_uris_are_refused(url: str) -> None:
    with pytest.raises(ApiError, match="invalid_data_uri"):
        media_of(source(url))


@pytest.mark.parametrize(("role", "text"), [("user", " \n"), ("assistant", "A cat.")])
def test_the_last_message_holds_the_question(role: Any, text: str) -> None:
    before = [Message(role="user", text="What is it?"), Message(role="user", text="And now?")]
    check_text(before, 100)
    with pytest.raises(ApiError) as caught:
        check_text([*before, Message(role=role, text=text)], 100, "conversation")
    assert (caught.value.code, caught.value.param) == ("empty_question", "conversation")


def test_every_role_of_openai_has_one_of_ours() -> None:
    roles = ("system", "developer", "user", "assistant", "tool", "function")
    asked = parse_request({"model": "m", "messages": [{"role": role, "content": role} for role in roles]})[0]
    assert [message.role for message in messages_of(asked)] == [
        "system", "system", "user", "assistant", "user", "user",
    ]  # fmt: skip
