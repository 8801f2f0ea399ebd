"""One that answers in a streaming evaluation: a running server, asked when the video is at the question's time."""

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
import httpx2  # what the openai client speaks with
from av.error import FFmpegError
from openai import AsyncOpenAI, DefaultAsyncHttpxClient, OpenAIError
from PIL import Image

from training.evaluation.camera_publisher import Broadcast
from training.evaluation.spoken_answer import SpokenAnswer
from training.evaluation.streaming_samples import Sample

PROMPT = Template((Path(__file__).parent / "prompts" / "newest_frames.md").read_text().strip())
PIECES = re.compile(r"\s*\S+|\s+")
PICTURE_SIDE = 640  # pixels at most, of pictures sent
TIMEOUT_S = 120.0


class NoAnswer(RuntimeError):
    """A question that a candidate could not be asked, or did not answer; the message says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """Where a candidate is and how it watches; raises ValueError for values that make no sense.

    sees: "camera": a StreamChat, which watches the video as a camera and may look again before every word;
        "frames": any OpenAI-compatible server, which gets the newest frames at the question as pictures.
    num_frames: newest ones (the paper's numbers are 32, and 5 a second). frames_per_second: of "frames" only.
    tokens_per_second: it speaks no faster. kafka: host:port of the broker that a StreamChat reads.
    """

    name: str
    url: str
    model: str = ""  # "": the first one that the server lists
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
        if (
            min(self.num_frames, self.max_tokens) < 1
            or min(self.frames_per_second, self.tokens_per_second) <= 0
        ):
            raise ValueError(f"{self.name}: num_frames, max_tokens and what is per second must be positive")

    @classmethod
    def parse(cls, text: str) -> Candidate:
        """Read `name=live,url=http://127.0.0.1:8000,kafka=127.0.0.1:9092,visual_context=live`; raises ValueError."""
        kinds = {f.name: {"int": int, "float": float}.get(str(f.type), str) for f in fields(cls)}
        values: dict[str, Any] = {}
        for part in text.split(","):
            key, equals, value = part.partition("=")
            if not equals or key not in kinds:
                raise ValueError(
                    f"candidate: got {part!r}, wanted KEY=VALUE with a key of {', '.join(kinds)}"
                )
            values[key] = kinds[key](value)
        if missing := {"name", "url"} - set(values):
            raise ValueError(f"candidate {text!r}: wanted {' and '.join(sorted(missing))} too")
        return cls(**values)

    @property
    def key(self) -> str:
        """What opens its server; raises OSError when the file cannot be read."""
        return Path(self.key_file).read_text().strip() if self.key_file else "none"

    def client(self) -> AsyncOpenAI:
        """A client of its server; refusals for lack of room are tried again."""
        return endpoint(self.url, self.key)


def endpoint(url: str, key: str) -> AsyncOpenAI:
    """A client of an OpenAI-compatible server. 429, 5xx and lost connections are tried again, ever later."""
    base = url.rstrip("/")
    return AsyncOpenAI(
        base_url=base if base.endswith("/v1") else f"{base}/v1",
        api_key=key,
        max_retries=5,
        timeout=TIMEOUT_S,
        http_client=DefaultAsyncHttpxClient(trust_env=False),
    )


async def first_model(client: AsyncOpenAI) -> str:
    """The first model that the server lists; raises NoAnswer when it lists none."""
    try:
        listed = (await client.with_options(max_retries=1).models.list()).data
    except OpenAIError as error:
        raise NoAnswer(f"{client.base_url}models: {error}") from error
    if not listed:
        raise NoAnswer(f"{client.base_url}models: the server lists no model")
    return listed[0].id


async def ask_camera(
    client: AsyncOpenAI, model: str, candidate: Candidate, camera: Broadcast, sample: Sample
) -> SpokenAnswer:
    """Wait until the camera is at the question's time, ask, and listen; raises NoAnswer or CameraLost."""
    await camera.wait_until(sample.ask_s)
    video = {"type": "video_url", "video_url": {"url": f"camera://{camera.camera}"}}
    options = {
        "visual_context": candidate.visual_context,
        "tokens_per_second": candidate.tokens_per_second,
        "frames": candidate.num_frames,
    }
    told: list[dict[str, Any]] = []
    finish = ""
    async for chunk in _stream(
        client, model, candidate, [video, _text(sample.instruction)], {"streamchat": options}
    ):
        told += ((chunk.model_extra or {}).get("streamchat") or {}).get("tokens", [])
        finish = _finish(chunk) or finish
    asked_seen_s = camera.time_of(told[0]["frame_id"]) if told else sample.ask_s
    live = candidate.visual_context == "live"
    tokens = [
        (t["text"], camera.time_of(t["frame_id"]) if live else asked_seen_s + t["time_s"])
        for t in told
        if t["text"]
    ]
    return SpokenAnswer(
        tokens=tuple(tokens),
        asked_seen_s=asked_seen_s,
        ended=finish == "stop",
        frame_ages_ms=tuple(t["frame_age_ms"] for t in told),
    )


async def ask_frames(client: AsyncOpenAI, model: str, candidate: Candidate, sample: Sample) -> SpokenAnswer:
    """Show the newest frames at the question's time, ask, and listen; raises NoAnswer.

    Nothing is waited for: the video's clock goes on from the question, for as long as the answer takes.
    """
    try:
        seen_s, pictures = await asyncio.to_thread(
            newest_frames, sample.video, sample.ask_s, candidate.num_frames, candidate.frames_per_second
        )
    except (FFmpegError, OSError, ValueError, IndexError) as error:
        raise NoAnswer(f"{sample.video} cannot be read as video: {error}") from error
    if not pictures:
        raise NoAnswer(f"{sample.video.name} has no frame before second {sample.ask_s:g}")
    words = PROMPT.substitute(
        num_frames=len(pictures),
        frames_per_second=f"{candidate.frames_per_second:g}",
        instruction=sample.instruction,
    )
    parts = [{"type": "image_url", "image_url": {"url": picture}} for picture in pictures]
    tokens: list[tuple[str, float]] = []
    finish = ""
    asked_s = time.monotonic()
    async for chunk in _stream(client, model, candidate, [*parts, _text(words)], {}):
        finish = _finish(chunk) or finish
        for piece in PIECES.findall(chunk.choices[0].delta.content or "" if chunk.choices else ""):
            spoken_s = max(time.monotonic() - asked_s, len(tokens) / candidate.tokens_per_second)
            tokens.append((piece, seen_s + spoken_s))
    return SpokenAnswer(tokens=tuple(tokens), asked_seen_s=seen_s, ended=finish == "stop")


def newest_frames(video: Path, until_s: float, num: int, frames_per_second: float) -> tuple[float, list[str]]:
    """The newest frames of a video at a time: the last one's time, and JPEG data URIs, oldest first."""
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
    picture.thumbnail((PICTURE_SIDE, PICTURE_SIDE))
    out = io.BytesIO()
    picture.save(out, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(out.getvalue()).decode()


def _text(words: str) -> dict[str, Any]:
    return {"type": "text", "text": words}


def _finish(chunk: Any) -> str:
    return next((c.finish_reason for c in chunk.choices if c.finish_reason), "")


async def _stream(
    client: AsyncOpenAI, model: str, candidate: Candidate, content: list[Any], extra: dict[str, Any]
) -> AsyncGenerator[Any]:
    """The chunks of an answer; raises NoAnswer for whatever the server or the way to it does."""
    try:
        messages: Any = [{"role": "user", "content": content}]
        chunks = await client.chat.completions.create(
            model=model, messages=messages, max_tokens=candidate.max_tokens, stream=True, extra_body=extra
        )
        async for chunk in chunks:
            yield chunk
    except (OpenAIError, httpx2.HTTPError) as error:
        raise NoAnswer(f"{candidate.name}: {type(error).__name__}: {error}") from error
