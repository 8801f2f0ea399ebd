"""Somebody who talks with a camera all the while, and notices when others disturb that."""

from __future__ import annotations

import threading
import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise

import openai

from tests.live.clients.live_stack import (
    MODEL,
    LiveStack,
    camera_part,
    eventually,
    in_order,
    question_about,
    tokens_of,
)

TOKENS_PER_S = 10.0
MAX_GAP_S = 3.0  # between two tokens: thirty times the pace, for machines with other work


@dataclass(frozen=True, slots=True)
class Heard:
    """One token."""

    at_s: float  # wall clock, as the other two
    made_s: float
    captured_s: float
    frame_id: str


class ContinuousClient:
    """Asks, listens to the end, asks again; from a thread, until closed."""

    def __init__(self, live: LiveStack, camera: str) -> None:
        self.heard: list[Heard] = []
        self.problems: list[str] = []
        self._live, self._camera = live, camera
        self._ended, self._again = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._talk, name="bystander", daemon=True)
        self._thread.start()
        eventually(lambda: bool(self.heard or self.problems), "the bystander hears nothing")

    @contextmanager
    def undisturbed(self, max_gap_s: float = MAX_GAP_S) -> Generator[None]:
        """In this block, and until a word was made from a frame captured after it, nothing is to be noticed."""
        began = len(self.heard)
        yield
        over_s = time.time()
        eventually(lambda: bool(self.problems) or self.heard[-1].captured_s > over_s, "no new frame came")
        assert self.problems == []
        heard = self.heard[max(0, began - 1) :]
        assert in_order([token.frame_id for token in heard])
        gaps_s = [
            (after.at_s - before.at_s, after.made_s - before.made_s) for before, after in pairwise(heard)
        ]
        assert max(gap_s for gap_s, _ in gaps_s) < max_gap_s, f"as heard and as made: {sorted(gaps_s)[-3:]}"

    def ask_again(self) -> None:
        """Begin a new answer, which lasts for a while: one who asks while a crowd is there may be refused."""
        self._again.set()
        began = len(self.heard)
        eventually(
            lambda: not self._again.is_set() and len(self.heard) > began, "the bystander hears nothing"
        )

    def close(self) -> None:
        """Stop listening."""
        self._ended.set()
        self._thread.join()

    def _talk(self) -> None:
        with self._live.client() as client:
            while not self._ended.is_set():
                try:
                    self._listen(client)
                except openai.OpenAIError as error:
                    self.problems.append(repr(error))
                    return

    def _listen(self, client: openai.OpenAI) -> None:
        self._again.clear()
        options = {"streamchat": {"tokens_per_second": TOKENS_PER_S}}
        messages = question_about(camera_part(self._camera))
        with client.chat.completions.create(
            model=MODEL, messages=messages, stream=True, max_tokens=1000, extra_body=options
        ) as stream:
            for chunk in stream:
                for token in tokens_of(chunk):
                    made_s = token["captured_s"] + token["frame_age_ms"] / 1000
                    self.heard.append(Heard(time.time(), made_s, token["captured_s"], token["frame_id"]))
                if self._ended.is_set() or self._again.is_set():
                    return
