"""An answer with the time in the video at which each token was spoken."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

SENTENCE_END = re.compile(r"[.!?][\"')\]]*\s")


@dataclass(frozen=True, slots=True, kw_only=True)
class TimedAnswer:
    """tokens: (text, seen_s); seen_s is the video time, in seconds, of the newest frame when the token was spoken.

    A server that sees that frame and one that does not are both scored by it.
    asked_seen_s: of the newest frame at the question. ended: the answer ended by itself and was not cut off.
    frame_ages_ms: age of the frame behind each token, from servers that report it.
    """

    tokens: tuple[tuple[str, float], ...]
    asked_seen_s: float
    ended: bool
    frame_ages_ms: tuple[float, ...] = ()

    @property
    def text(self) -> str:
        """The whole answer."""
        return "".join(text for text, _ in self.tokens).strip()

    def as_dict(self) -> dict[str, Any]:
        """The answer as plain values, for a JSON file."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> TimedAnswer:
        """Read what `as_dict` gave, from JSON."""
        tokens = tuple((str(text), float(seen_s)) for text, seen_s in values["tokens"])
        ages = tuple(values["frame_ages_ms"])
        return cls(
            tokens=tokens, asked_seen_s=values["asked_seen_s"], ended=values["ended"], frame_ages_ms=ages
        )

    def timed_sentences(self) -> list[tuple[float, str]]:
        """Each sentence with the video time at which it began."""
        starts: list[tuple[int, float]] = []
        length = 0
        for text, seen_s in self.tokens:
            starts.append((length, seen_s))
            length += len(text)
        whole = "".join(text for text, _ in self.tokens)
        edges = [0, *(match.end() for match in SENTENCE_END.finditer(whole)), len(whole)]
        sentences: list[tuple[float, str]] = []
        for begin, end in pairwise(edges):
            if text := whole[begin:end].strip():
                seen_s = next(s for at, s in reversed(starts) if at <= begin)
                sentences.append((seen_s, text))
        return sentences
