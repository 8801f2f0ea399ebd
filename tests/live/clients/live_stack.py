"""A running `streamchat up`, seen by its clients."""

from __future__ import annotations

import re
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import httpx
import openai

from services.ports.frame_store import parse_frame_id
from services.processes.polling import wait_until

MODEL = "streamchat-tiny"
MAX_DIALOGS = 32  # few, so that a test can exceed it
QUESTION = "What is happening?"
PATIENCE_S = 60.0  # generous, for busy machines


@dataclass(frozen=True, slots=True)
class LiveStack:
    """Its addresses."""

    url: str
    kafka: str  # host:port

    def client(self) -> openai.OpenAI:
        """The unmodified openai client, without retries."""
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0, timeout=PATIENCE_S)

    def cameras(self) -> dict[str, dict[str, Any]]:
        """`GET /v1/cameras`, by id."""
        listed = httpx.get(f"{self.url}/v1/cameras", timeout=PATIENCE_S, trust_env=False).json()["data"]
        return {camera["id"]: camera for camera in listed}

    def has_frames(self, camera: str) -> bool:
        """Whether a camera has frames; one that sends and has none is listed with its problem."""
        return self.cameras().get(camera, {"num_frames": 0})["num_frames"] > 0

    def metric(self, name: str) -> float:
        """One number of `GET /metrics`, summed over its labels."""
        with urllib.request.urlopen(f"{self.url}/metrics", timeout=PATIENCE_S) as answer:
            found = re.findall(rf"^{name}(?:\{{.*\}})? (\S+)$", answer.read().decode(), re.MULTILINE)
        assert found, f"no metric {name}"
        return sum(map(float, found))

    def wait_for_frames(self, *cameras: str, num_frames: int = 3) -> None:
        """Wait until each of the cameras is live and has that many frames."""

        def all_live() -> bool:
            known = self.cameras()
            return all(
                known.get(camera, {}).get("state") == "live" and known[camera]["num_frames"] >= num_frames
                for camera in cameras
            )

        eventually(all_live, f"no frames of {cameras}: {self.cameras()}")


def eventually(condition: Callable[[], bool], otherwise: str) -> None:
    """Wait until the condition holds; the test fails with the message `otherwise` if it does not."""
    assert wait_until(condition, PATIENCE_S, every_s=0.1), otherwise


def camera_part(camera: str) -> dict[str, Any]:
    """The content part that names a camera."""
    return {"type": "video_url", "video_url": {"url": f"camera://{camera}"}}


def question_about(part: dict[str, Any], text: str = QUESTION) -> list[Any]:
    """A question about what the part shows."""
    return [{"role": "user", "content": [part, {"type": "text", "text": text}]}]


def tokens_of(chunk: Any) -> list[dict[str, Any]]:
    """The `streamchat` tokens of a chunk or of a whole answer."""
    extension = (chunk.model_extra or {}).get("streamchat") or {}
    return list(extension.get("tokens", ()))


def in_order(frame_ids: Sequence[str]) -> bool:
    """Whether the frames never go back in time."""
    positions = [parse_frame_id(frame_id) for frame_id in frame_ids]
    return positions == sorted(positions)
