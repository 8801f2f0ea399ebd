"""A client of StreamChat's HTTP API, for the terminal and the demo."""

from __future__ import annotations

import json
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal
from urllib.parse import quote

import httpx

DEFAULT_URL = "http://127.0.0.1:8000"
CONNECT_TIMEOUT_S = 5.0
READ_TIMEOUT_S = 120.0  # between two tokens


class ChatRefused(ValueError):
    """The request or the address was wrong; the message says what to change."""


class ChatLost(ConnectionError):
    """The service could not answer, or the answer stopped early; asking again may help."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Token:
    """One token and the newest frame that it could see."""

    text: str
    time_s: float  # since the question
    frame_id: str
    frame_age_ms: float
    stale: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Camera:
    """One row of `GET /v1/cameras`."""

    id: str
    state: str
    fps: float
    newest_frame_age_ms: float
    num_frames: int
    capacity: int
    name: str = ""
    problem: str = ""


class ChatClient:
    """A connection to `url`, with an API key if one is given; every method raises ChatRefused or ChatLost."""

    def __init__(self, url: str = DEFAULT_URL, key: str = "") -> None:
        self.url = url.rstrip("/")
        timeout = httpx.Timeout(READ_TIMEOUT_S, connect=CONNECT_TIMEOUT_S)
        try:
            # `trust_env`: proxies in the environment are for other hosts, not for this service.
            headers = {"Authorization": f"Bearer {key}"} if key else {}
            self._http = httpx.Client(base_url=self.url, timeout=timeout, headers=headers, trust_env=False)
            if self._http.base_url.scheme not in ("http", "https") or not self._http.base_url.host:
                raise ValueError("it does not begin with http:// or https:// and a host")
        except (httpx.InvalidURL, ValueError) as error:
            raise ChatRefused(f"{url!r} is not a URL: {error}") from error

    def __enter__(self) -> ChatClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self._http.close()

    def cameras(self) -> list[Camera]:
        """All cameras that have frames."""
        rows: list[dict[str, Any]] = self._get("/v1/cameras")["data"]
        return [Camera(**{name: row[name] for name in Camera.__slots__}) for row in rows]

    def model(self) -> str:
        """The name of the model that is served."""
        return str(self._get("/v1/models")["data"][0]["id"])

    def ask(
        self,
        camera: str,
        question: str,
        *,
        visual_context: Literal["live", "frozen"] = "live",
        tokens_per_second: float | None = None,
        max_tokens: int | None = None,
    ) -> Generator[Token]:
        """The answer's tokens, as they arrive."""
        options: dict[str, Any] = {"visual_context": visual_context, "tokens_per_second": tokens_per_second}
        content = [
            {"type": "video_url", "video_url": {"url": f"camera://{quote(camera, safe='')}"}},
            {"type": "text", "text": question},
        ]
        body = {
            "model": self.model(),
            "messages": [{"role": "user", "content": content}],
            "stream": True,
            "max_tokens": max_tokens,
            "streamchat": {name: value for name, value in options.items() if value is not None},
        }
        body = {name: value for name, value in body.items() if value is not None}
        try:
            with self._http.stream("POST", "/v1/chat/completions", json=body) as response:
                self._check(response)
                yield from _tokens(response.iter_lines())
        except httpx.HTTPError as error:
            raise self._lost(error) from error

    def _get(self, path: str) -> Any:
        try:
            response = self._http.get(path)
            self._check(response)
            return response.json()
        except (httpx.HTTPError, json.JSONDecodeError) as error:
            raise self._lost(error) from error

    def _check(self, response: httpx.Response) -> None:
        if response.is_success:
            return
        text = response.read().decode(errors="replace")
        try:
            message = str(json.loads(text)["error"]["message"])
        except (ValueError, KeyError, TypeError):
            message = f"{self.url} answered {response.status_code}: {text[:200]}"
        if 400 <= response.status_code < 500 and response.status_code not in (408, 409, 429):
            raise ChatRefused(message)
        raise ChatLost(message)

    def _lost(self, error: Exception) -> ChatLost:
        if isinstance(error, httpx.ConnectError):
            return ChatLost(f"nothing answers at {self.url}; is `streamchat up` running? ({error})")
        return ChatLost(f"the connection to {self.url} was lost: {error!r}")


def _tokens(lines: Iterator[str]) -> Generator[Token]:
    """The tokens of a stream of server-sent events; ChatLost when it ends without `[DONE]`."""
    for line in lines:
        name, _, data = line.partition(":")
        if name != "data":
            continue
        if data.strip() == "[DONE]":
            return
        chunk: dict[str, Any] = json.loads(data)
        if error := chunk.get("error"):
            raise ChatLost(f"the answer stopped early: {error.get('message', error)}")
        for token in (chunk.get("streamchat") or {}).get("tokens", ()):
            yield Token(**{name: token[name] for name in Token.__slots__})
    raise ChatLost("the answer ended without its last event ([DONE])")
