"""`streamchat chat`: a live answer in the terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TextIO

from services.cli.chat_client import ChatClient, Token
from services.messages.percentile import percentile

DIM, PLAIN = "\x1b[2m", "\x1b[0m"


@dataclass(slots=True)
class PrintedAnswer:
    """An answer that was printed, and its figures."""

    text: str = ""
    ages_ms: list[float] = field(default_factory=list[float])  # of the frame behind each token
    num_stale: int = 0
    duration_s: float = 0.0  # from the question to the last token

    @property
    def num_words(self) -> int:
        return len(self.text.split())

    @property
    def tokens_per_s(self) -> float:
        return len(self.ages_ms) / self.duration_s if self.duration_s > 0 else 0.0

    def summary(self) -> str:
        """One line."""
        if not self.ages_ms:
            return "no answer"
        p50, p95 = percentile(self.ages_ms, 0.5), percentile(self.ages_ms, 0.95)
        stale = f", {self.num_stale} stale" if self.num_stale else ""
        return (
            f"{self.num_words} words in {self.duration_s:.1f} s ({self.tokens_per_s:.1f} tokens/s); "
            f"frame age: p50 {p50:.0f} ms, p95 {p95:.0f} ms{stale}"
        )


def print_answer(tokens: Iterable[Token], out: TextIO, *, show_ages: bool, colour: bool) -> PrintedAnswer:
    """Print an answer while it arrives. `show_ages`: after each word, the age of the newest frame it could see."""
    answer = PrintedAnswer()
    started = time.monotonic()
    last: Token | None = None
    for token in tokens:
        # A word may be several tokens: it is complete when the next one begins with a space.
        next_word = token.text[:1].isspace() and not answer.text[-1:].isspace()
        if show_ages and last and answer.text.strip() and next_word:
            out.write(age_label(last, colour=colour))
        out.write(token.text if answer.text else token.text.lstrip())
        out.flush()
        answer.text += token.text
        answer.ages_ms.append(token.frame_age_ms)
        answer.num_stale += token.stale
        answer.duration_s = time.monotonic() - started
        last = token if token.text.strip() else last
    if show_ages and last:
        out.write(age_label(last, colour=colour))
    out.write("\n")
    out.flush()
    return answer


def age_label(token: Token, *, colour: bool) -> str:
    """The text after a word: ` (142 ms)`."""
    text = f" ({token.frame_age_ms:.0f} ms{', stale' if token.stale else ''})"
    return f"{DIM}{text}{PLAIN}" if colour else text


def chat(
    url: str, camera: str, question: str, *, frozen: bool, tokens_per_second: float | None, key: str = ""
) -> int:
    """Ask, and print the answer, with frame ages in a terminal. Raises ChatRefused or ChatLost."""
    terminal = sys.stdout.isatty()
    with ChatClient(url, key) as client:
        tokens = client.ask(
            camera,
            question,
            visual_context="frozen" if frozen else "live",
            tokens_per_second=tokens_per_second,
        )
        answer = print_answer(tokens, sys.stdout, show_ages=terminal, colour=terminal)
    print(answer.summary(), file=sys.stderr)
    return 0
