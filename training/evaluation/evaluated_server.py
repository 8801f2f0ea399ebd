"""A running server that is evaluated: it is asked when the video has reached the question's time."""

from __future__ import annotations

import asyncio
import base64
import io
import re
import time
from collections import deque
from collections.abc import AsyncGenerator
from dataclasses import dataclass, fields
from pathlib import Path
from string import Template
from typing import Any, Literal

import av
import httpx2  # the HTTP client of the openai package
from av.error import FFmpegError
from openai import AsyncOpenAI, OpenAIError
from PIL import Image

from training.evaluation.camera_publisher import CameraPublisher
from training.evaluation.eval_questions import EvalQuestion
from training.evaluation.openai_endpoint import EndpointError, open_client
from training.evaluation.timed_answer import TimedAnswer

PROMPT = Template((Path(__file__).parent / "prompts" / "newest_frames.md").read_text().strip())
WORD = re.compile(r"\s*\S+|\s+")
MAX_PICTURE_SIDE = 640  # pixels, of the pictures that are sent


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluatedServer:
    """Address of a server and how it sees the video. Raises ValueError for impossible values.

    sees: "camera": a StreamChat, which gets the video as a live camera;
        "frames": any OpenAI-compatible server, which gets the newest frames at the question as pictures.
    num_frames: how many of the newest frames (paper: 32). frames_per_second: for "frames" only (paper: 5).
    tokens_per_second: the pace of the answer. kafka: host:port of the broker that a StreamChat reads.
    """

    name: str
    url: str
    model: str = ""  # default: the first model that the server lists
    key_file: str = ""
    sees: Literal["camera", "frames"] = "camera"
    kafka: str = ""
    visual_context: Literal["live", "frozen"] = "live"
    num_frames: int = 32
    frames_per_second: float = 5.0
    tokens_per_second: float = 5.0
    max_tokens: int = 256

    def __post_init__(self) -> None:
        if self.sees not in ("camera", "frames") or self.visual_context not in ("live", "frozen"):
            got = f"sees={self.sees}, visual_context={self.visual_context}"
            raise ValueError(
                f"{self.name}: got {got}, wanted sees=camera or frames, visual_context=live or frozen"
            )
        if self.sees == "camera" and not self.kafka:
            raise ValueError(f"{self.name}: wanted kafka=HOST:PORT, the broker that {self.url} reads")
        counts, rates = (self.num_frames, self.max_tokens), (self.frames_per_second, self.tokens_per_second)
        if min(counts) < 1 or min(rates) <= 0:
            raise ValueError(f"{self.name}: num_frames, max_tokens and rates per second must be positive")

    @classmethod
    def parse(cls, text: str) -> EvaluatedServer:
        """Read `name=live,url=http://127.0.0.1:8000,kafka=127.0.0.1:9092,visual_context=live`; raises ValueError."""
        kinds = {f.name: {"int": int, "float": float}.get(str(f.type), str) for f in fields(cls)}
        values: dict[str, Any] = {}
        for part in text.split(","):
            key, equals, value = part.partition("=")
            if not equals or key not in kinds:
                raise ValueError(f"server: got {part!r}, wanted KEY=VALUE with a key of {', '.join(kinds)}")
            values[key] = kinds[key](value)
        if missing := {"name", "url"} - set(values):
            raise ValueError(f"server {text!r}: wanted {' and '.join(sorted(missing))} too")
        return cls(**values)

    @property
    def key(self) -> str:
        """The server's API key; raises OSError when the file cannot be read."""
        return Path(self.key_file).read_text().strip() if self.key_file else "none"

    def client(self) -> AsyncOpenAI:
        """A client of the server."""
        return open_client(self.url, self.key)


async def ask_camera(
    client: AsyncOpenAI, model: str, server: EvaluatedServer, camera: CameraPublisher, question: EvalQuestion
) -> TimedAnswer:
    """Ask when the camera has reached the question's time; raises EndpointError or CameraLost."""
    await camera.wait_until(question.ask_s)
    video = {"type": "video_url", "video_url": {"url": f"camera://{camera.camera}"}}
    options = {
        "visual_context": server.visual_context,
        "tokens_per_second": server.tokens_per_second,
        "frames": server.num_frames,
    }
    content = [video, _text(question.instruction)]
    timed: list[dict[str, Any]] = []
    finish = ""
    async for chunk in _stream(client, model, server, content, {"streamchat": options}):
        timed += ((chunk.model_extra or {}).get("streamchat") or {}).get("tokens", [])
        finish = _finish(chunk) or finish
    asked_seen_s = camera.time_of(timed[0]["frame_id"]) if timed else question.ask_s
    live = server.visual_context == "live"
    tokens = [
        (t["text"], camera.time_of(t["frame_id"]) if live else asked_seen_s + t["time_s"])
        for t in timed
        if t["text"]
    ]
    return TimedAnswer(
        tokens=tuple(tokens),
        asked_seen_s=asked_seen_s,
        ended=finish == "stop",
        frame_ages_ms=tuple(t["frame_age_ms"] for t in timed),
    )


async def ask_frames(
    client: AsyncOpenAI, model: str, server: EvaluatedServer, question: EvalQuestion
) -> TimedAnswer:
    """Ask with the newest frames at the question's time as pictures; raises EndpointError.

    This does not wait for the video. The video's clock runs from the question on, while the answer is written.
    """
    try:
        seen_s, pictures = await asyncio.to_thread(
            newest_frames, question.video, question.ask_s, server.num_frames, server.frames_per_second
        )
    except (FFmpegError, OSError, ValueError, IndexError) as error:
        raise EndpointError(f"{question.video} cannot be read as video: {error}") from error
    if not pictures:
        raise EndpointError(f"{question.video.name} has no frame before second {question.ask_s:g}")
    prompt = PROMPT.substitute(
        num_frames=len(pictures),
        frames_per_second=f"{server.frames_per_second:g}",
        instruction=question.instruction,
    )
    content = [{"type": "image_url", "image_url": {"url": picture}} for picture in pictures]
    tokens: list[tuple[str, float]] = []
    finish = ""
    asked_s = time.monotonic()
    async for chunk in _stream(client, model, server, [*content, _text(prompt)], {}):
        finish = _finish(chunk) or finish
        for word in WORD.findall(chunk.choices[0].delta.content or "" if chunk.choices else ""):
            spoken_s = max(time.monotonic() - asked_s, len(tokens) / server.tokens_per_second)
            tokens.append((word, seen_s + spoken_s))
    return TimedAnswer(tokens=tuple(tokens), asked_seen_s=seen_s, ended=finish == "stop")


def newest_frames(video: Path, until_s: float, num: int, frames_per_second: float) -> tuple[float, list[str]]:
    """The newest `num` frames of a video at a time: time of the last one, and JPEG data URIs, oldest first."""
    newest = deque[tuple[float, av.VideoFrame]](maxlen=num)
    first_s: float | None = None
    due_s = 0.0
    with av.open(str(video)) as container:
        for frame in container.decode(container.streams.video[0]):
            first_s = frame.time if first_s is None else first_s
            time_s = frame.time - first_s
            if time_s > until_s:
                break
            if time_s >= due_s - 1e-6:
                newest.append((time_s, frame))
                due_s += 1 / frames_per_second
    return (newest[-1][0] if newest else 0.0), [_jpeg(frame) for _, frame in newest]


def _jpeg(frame: av.VideoFrame) -> str:
    picture: Image.Image = frame.to_image()
    picture.thumbnail((MAX_PICTURE_SIDE, MAX_PICTURE_SIDE))
    out = io.BytesIO()
    picture.save(out, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(out.getvalue()).decode()


def _text(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


def _finish(chunk: Any) -> str:
    return next((c.finish_reason for c in chunk.choices if c.finish_reason), "")


async def _stream(
    client: AsyncOpenAI, model: str, server: EvaluatedServer, content: list[Any], extra: dict[str, Any]
) -> AsyncGenerator[Any]:
    """The chunks of an answer; raises EndpointError for every failure of the server or the connection."""
    try:
        messages: Any = [{"role": "user", "content": content}]
        chunks = await client.chat.completions.create(
            model=model, messages=messages, max_tokens=server.max_tokens, stream=True, extra_body=extra
        )
        async for chunk in chunks:
            yield chunk
    except (OpenAIError, httpx2.HTTPError) as error:
        raise EndpointError(f"{server.name}: {type(error).__name__}: {error}") from error
