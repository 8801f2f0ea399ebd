"""Evaluated servers: their values, and questions to any OpenAI-compatible server."""

from __future__ import annotations

import asyncio
import base64
import io
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.training.scripted_endpoint import MODEL, chunks, scripted
from training.evaluation.eval_questions import EvalQuestion
from training.evaluation.evaluated_server import EvaluatedServer, ask_frames, newest_frames
from training.evaluation.openai_endpoint import EndpointError
from training.live_world.clips import Clip
from training.live_world.word_scores import join_tokens


def frames_server(url: str = "http://127.0.0.1:1", **changes: Any) -> EvaluatedServer:
    return EvaluatedServer(name="other", url=url, sees="frames", **changes)


def eval_question(clip: Clip, ask_s: float = 4.0) -> EvalQuestion:
    return EvalQuestion(name="x", video=clip.path, ask_s=ask_s, instruction="What is there?", answer="A dog.")


def test_a_server_is_read_from_the_command_line() -> None:
    text = "name=a,url=http://h:1,kafka=h:2,visual_context=frozen,num_frames=16,tokens_per_second=2.5"
    parsed = EvaluatedServer.parse(text)
    assert parsed == EvaluatedServer(
        name="a", url="http://h:1", kafka="h:2", visual_context="frozen", num_frames=16, tokens_per_second=2.5
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name=a", "wanted url too"),
        ("name=a,url", "got 'url', wanted KEY=VALUE"),
        ("name=a,url=x,colour=red", "got 'colour=red', wanted KEY=VALUE with a key of name, url"),
        ("name=a,url=x", "wanted kafka=HOST:PORT"),
        ("name=a,url=x,sees=ears", "got sees=ears"),
        ("name=a,url=x,sees=frames,visual_context=past", "visual_context=past"),
        ("name=a,url=x,sees=frames,num_frames=0", "must be positive"),
        ("name=a,url=x,sees=frames,num_frames=some", "invalid literal"),
    ],
)
def test_a_wrong_server_is_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EvaluatedServer.parse(text)


def test_the_newest_frames_end_at_the_question(held_out: list[Clip]) -> None:
    seen_s, pictures = newest_frames(held_out[0].path, 4.05, 8, 5.0)
    assert seen_s == pytest.approx(4.0)
    assert len(pictures) == 8
    with Image.open(io.BytesIO(base64.b64decode(pictures[0].partition(",")[2]))) as picture:
        assert picture.format == "JPEG"
    assert len(newest_frames(held_out[0].path, 0.5, 8, 5.0)[1]) == 3


async def test_words_come_at_the_videos_pace(held_out: list[Clip]) -> None:
    with scripted(lambda request: "At top-left. At top.") as server:
        other = frames_server(server.url, num_frames=6, tokens_per_second=20.0)
        async with other.client() as client:
            answer = await ask_frames(client, MODEL, other, eval_question(held_out[0]))
    assert (server.requests[0].num_pictures, server.requests[0].model) == (6, MODEL)
    assert "newest 6 frames of a live video, 5 a second" in server.requests[0].text
    assert server.requests[0].text.endswith("What is there?")
    assert answer.text == "At top-left. At top."
    assert answer.ended
    words = join_tokens(answer.tokens)
    assert [w.text for w in words] == ["At", "top-left.", "At", "top."]
    assert answer.asked_seen_s == pytest.approx(4.0)
    for number, word in enumerate(words):
        assert word.seen_s >= 4.0 + number / 20.0  # it speaks no faster than it may


async def test_what_goes_wrong_is_named(held_out: list[Clip], tmp_path: Path) -> None:
    with scripted(lambda request: 400) as server:
        async with frames_server(server.url).client() as client:
            with pytest.raises(EndpointError, match="other: BadRequestError"):
                await ask_frames(client, MODEL, frames_server(), eval_question(held_out[0]))
            broken = tmp_path / "broken.mp4"
            broken.write_bytes(held_out[0].path.read_bytes()[:500])
            lost = EvalQuestion(name="x", video=broken, ask_s=1.0, instruction="?", answer="!")
            with pytest.raises(EndpointError, match=r"broken\.mp4 cannot be read as video"):
                await ask_frames(client, MODEL, frames_server(), lost)
            with pytest.raises(EndpointError, match="no frame before second -1"):
                await ask_frames(client, MODEL, frames_server(), eval_question(held_out[0], -1.0))


async def test_an_answer_that_breaks_off_is_no_answer(held_out: list[Clip]) -> None:
    async def breaks_off(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Length: 5000\r\n\r\n")
        writer.write(next(chunks("The dog")).encode())
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(breaks_off, "127.0.0.1", 0) as server:
        other = frames_server(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
        async with other.client() as client:
            with pytest.raises(EndpointError, match="other: "):
                await ask_frames(client, MODEL, other, eval_question(held_out[0]))
