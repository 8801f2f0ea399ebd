"""`streamchat chat` and `streamchat cameras`: a live answer in the terminal, and what there is to ask."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TextIO

from services.cli.chat_client import Camera, ChatClient, Token
from services.messages.percentile import percentile

DIM, PLAIN = "\x1b[2m", "\x1b[0m"


@dataclass(slots=True)
class Spoken:
    """An answer, as it was heard."""

    text: str = ""
    ages_ms: list[float] = field(default_factory=lambda: list[float]())
    num_stale: int = 0
    took_s: float = 0.0  # from the question to the last token

    @property
    def num_words(self) -> int:
        return len(self.text.split())

    @property
    def tokens_per_s(self) -> float:
        return len(self.ages_ms) / self.took_s if self.took_s > 0 else 0.0

    def summary(self) -> str:
        """One line."""
        if not self.ages_ms:
            return "no answer"
        p50, p95 = percentile(self.ages_ms, 0.5), percentile(self.ages_ms, 0.95)
        stale = f", {self.num_stale} stale" if self.num_stale else ""
        return (
            f"{self.num_words} words in {self.took_s:.1f} s ({self.tokens_per_s:.1f} tokens/s); "
            f"age of the frame behind a word: p50 {p50:.0f} ms, p95 {p95:.0f} ms{stale}"
        )


def speak(tokens: Iterable[Token], out: TextIO, *, ages: bool, colour: bool) -> Spoken:
    """Write an answer while it comes; `ages` puts behind each word the age of the newest frame it could see."""
    spoken = Spoken()
    began = time.monotonic()
    last: Token | None = None
    for token in tokens:
        # A word may be several tokens: it is over when the next one begins with a space.
        if (
            ages
            and last
            and spoken.text.strip()
            and (token.text[:1].isspace() and not spoken.text[-1:].isspace())
        ):
            out.write(age(last, colour=colour))
        out.write(token.text if spoken.text else token.text.lstrip())
        out.flush()
        spoken.text += token.text
        spoken.ages_ms.append(token.frame_age_ms)
        spoken.num_stale += token.stale
        spoken.took_s = time.monotonic() - began
        last = token if token.text.strip() else last
    if ages and last:
        out.write(age(last, colour=colour))
    out.write("\n")
    out.flush()
    return spoken


def age(token: Token, *, colour: bool) -> str:
    """What stands behind a word: ` (142 ms)`."""
    text = f" ({token.frame_age_ms:.0f} ms{', stale' if token.stale else ''})"
    return f"{DIM}{text}{PLAIN}" if colour else text


def chat(
    url: str, camera: str, question: str, *, frozen: bool, tokens_per_second: float | None, key: str = ""
) -> int:
    """Ask and show the answer; ages only where a person looks. Raises ChatRefused or ChatLost."""
    person = sys.stdout.isatty()
    with ChatClient(url, key) as client:
        tokens = client.ask(
            camera,
            question,
            visual_context="frozen" if frozen else "live",
            tokens_per_second=tokens_per_second,
        )
        spoken = speak(tokens, sys.stdout, ages=person, colour=person)
    print(spoken.summary(), file=sys.stderr)
    return 0


def show_cameras(url: str, *, key: str = "") -> int:
    """Print the cameras as a table. Raises ChatRefused or ChatLost."""
    with ChatClient(url, key) as client:
        cameras = client.cameras()
    if not cameras:
        print("no camera yet: `streamchat publish SOURCE --camera ID` makes one", file=sys.stderr)
        return 0
    print(table(cameras))
    return 0


def table(cameras: Sequence[Camera]) -> str:
    """One row per camera, in columns."""
    head = ("camera", "state", "frames/s", "newest frame", "frames kept")
    rows = [
        (
            one.id,
            one.state,
            f"{one.fps:.1f}",
            f"{one.newest_frame_age_ms:.0f} ms ago",
            f"{one.num_frames}/{one.capacity}",
        )
        for one in cameras
    ]
    widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]
    lines = (
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in (head, *rows)
    )
    return "\n".join(line.rstrip() for line in lines)
