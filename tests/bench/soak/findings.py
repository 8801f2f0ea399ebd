"""A fuzzer's state: what it counts, and the answers that break a promise."""

from __future__ import annotations

import json
import re
import tempfile
import threading
from collections import Counter
from dataclasses import dataclass
from random import Random
from typing import Any

import httpx

from model.config import PROJECT_ROOT

MAX_KEPT = 50
UNAVAILABLE = 503  # a server's own words for: not now


def without_paths(text: str) -> str:
    """A text for a result that is kept: no folder of this machine, of the project or a temporary one, is in it."""
    return re.sub(
        rf"{re.escape(str(PROJECT_ROOT))}/|{re.escape(tempfile.gettempdir())}/(?:tmp[^/]*/)?", "", text
    )


class Findings:
    """Counts of what was sent and answered, and the broken promises. For any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.counts: Counter[str] = Counter()
        self.num_broken = 0
        self.broken: list[dict[str, str]] = []  # the first MAX_KEPT

    def count(self, what: str) -> None:
        """One more of these."""
        with self._lock:
            self.counts[what] += 1

    def break_promise(self, kind: str, promise: str, sent: object, got: object) -> None:
        """What was promised, what was sent, what came."""
        with self._lock:
            self.num_broken += 1
            if len(self.broken) < MAX_KEPT:
                texts = {"sent": without_paths(str(sent))[:2000], "got": without_paths(str(got))[:500]}
                self.broken.append({"kind": kind, "promise": promise, **texts})

    def check_reply(self, kind: str, sent: object, status: int, method: str, body: bytes) -> None:
        """A refusal has the API's shape, and no reply is a fault of the server's own."""
        self.count(f"{kind} {status}")
        if status >= 500 and status != UNAVAILABLE:
            self.break_promise(kind, "no fault of the server's own", sent, f"{status} {body[:400]!r}")
        elif status >= 400 and method != "HEAD" and not is_error(body):
            self.break_promise(kind, "a refusal has the shape of an error", sent, f"{status} {body[:400]!r}")

    def no_answer(self, kind: str, sent: object, error: httpx.HTTPError) -> None:
        """No reply in time, or the connection broke."""
        self.count(f"{kind} {type(error).__name__}")
        self.break_promise(kind, "every request is answered", sent, repr(error))


@dataclass(frozen=True, slots=True)
class Fuzzing:
    """What a fuzzer needs: where to note, its own chance, its pause between two things, and the end."""

    findings: Findings
    random: Random
    pause_s: float
    ended: threading.Event

    def goes_on(self) -> bool:
        """Pause; whether to send another one."""
        return not self.ended.wait(self.pause_s)


def is_error(body: bytes) -> bool:
    """Whether this is the API's error: an object `error` with a message and a type."""
    try:
        error: Any = json.loads(body)["error"]
        return bool(error["message"]) and bool(error["type"]) and {"code", "param"} <= error.keys()
    except (ValueError, KeyError, TypeError):
        return False
