"""A client that asks one question after the other, and checks that other requests do not disturb it."""

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
MAX_GAP_S = 3.0  # between two tokens: 30 times the pace, for busy machines


@dataclass(frozen=True, slots=True)
class ReceivedToken:
    """One token; all times are wall clock."""

    received_s: float
    made_s: float
    captured_s: float
    frame_id: str


class ContinuousClient:
    """Asks, reads the whole answer and asks again, in a thread, until closed."""

    def __init__(self, live: LiveStack, camera: str) -> None:
        self.tokens: list[ReceivedToken] = []
        self.problems: list[str] = []
        self._live, self._camera = live, camera
        self._ended, self._restart = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="continuous client", daemon=True)
        self._thread.start()
        eventually(lambda: bool(self.tokens or self.problems), "the continuous client receives nothing")

    @contextmanager
    def undisturbed(self, max_gap_s: float = MAX_GAP_S) -> Generator[None]:
        """Checks the tokens of this block, and those up to the first one from a frame captured after it."""
        first = len(self.tokens)
        yield
        ended_s = time.time()
        eventually(lambda: bool(self.problems) or self.tokens[-1].captured_s > ended_s, "no new frame came")
        assert self.problems == []
        tokens = self.tokens[max(0, first - 1) :]
        assert in_order([token.frame_id for token in tokens])
        gaps_s = [
            (after.received_s - before.received_s, after.made_s - before.made_s)
            for before, after in pairwise(tokens)
        ]
        assert max(gap_s for gap_s, _ in gaps_s) < max_gap_s, (
            f"as received and as made: {sorted(gaps_s)[-3:]}"
        )

    def ask_again(self) -> None:
        """Start a new, long answer now, because a question during overload may be refused."""
        self._restart.set()
        first = len(self.tokens)
        eventually(
            lambda: not self._restart.is_set() and len(self.tokens) > first,
            "the continuous client receives nothing",
        )

    def close(self) -> None:
        """Stop asking."""
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        with self._live.client() as client:
            while not self._ended.is_set():
                try:
                    self._ask(client)
                except openai.OpenAIError as error:
                    self.problems.append(repr(error))
                    return

    def _ask(self, client: openai.OpenAI) -> None:
        self._restart.clear()
        options = {"streamchat": {"tokens_per_second": TOKENS_PER_S}}
        messages = question_about(camera_part(self._camera))
        with client.chat.completions.create(
            model=MODEL, messages=messages, stream=True, max_tokens=1000, extra_body=options
        ) as stream:
            for chunk in stream:
                for token in tokens_of(chunk):
                    made_s = token["captured_s"] + token["frame_age_ms"] / 1000
                    self.tokens.append(
                        ReceivedToken(time.time(), made_s, token["captured_s"], token["frame_id"])
                    )
                if self._ended.is_set() or self._restart.is_set():
                    return
