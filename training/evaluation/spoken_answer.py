"""An answer as it was heard: its words, and where in the video the world was when each was spoken."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

SENTENCE_END = re.compile(r"[.!?][\"')\]]*\s")


@dataclass(frozen=True, slots=True, kw_only=True)
class SpokenAnswer:
    """tokens: each text with the video's time, in seconds, of the newest frame that could be seen when it was spoken.

    Whoever looks on saw that frame; whoever does not spoke at that time all the same, and is judged by it.
    asked_seen_s: of the newest frame there was at the question. ended: by itself, not because it was cut off.
    frame_ages_ms: how old the frame behind each token was, from servers that say so.
    """

    tokens: tuple[tuple[str, float], ...]
    asked_seen_s: float
    ended: bool
    frame_ages_ms: tuple[float, ...] = ()

    @property
    def text(self) -> str:
        """All words."""
        return "".join(text for text, _ in self.tokens).strip()

    def as_dict(self) -> dict[str, Any]:
        """As files hold it."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> SpokenAnswer:
        """What `as_dict` gave, from JSON."""
        tokens = tuple((str(text), float(seen_s)) for text, seen_s in values["tokens"])
        ages = tuple(values["frame_ages_ms"])
        return cls(
            tokens=tokens, asked_seen_s=values["asked_seen_s"], ended=values["ended"], frame_ages_ms=ages
        )

    def timed_sentences(self) -> list[tuple[float, str]]:
        """Each sentence with the video's time when it was begun."""
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
