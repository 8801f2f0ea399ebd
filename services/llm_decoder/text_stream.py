"""Turns token ids into text: whole characters only, and nothing of a stop string."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase


class TextStream:
    """One answer's text as it grows."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stop: Sequence[str] = ()) -> None:
        self._tokenizer = tokenizer
        self._stop = tuple(stop)
        self._ids: list[int] = []
        self._num_shown = 0  # ids whose text is complete
        self._start = 0  # decoding starts here, a few ids earlier: the tokenizer needs context for spaces
        self._held = ""  # text that may be the start of a stop string
        self.stopped = False

    def push(self, token_id: int) -> str:
        """The text that this token adds; empty while a character is unfinished or a stop string may be coming."""
        self._ids.append(token_id)
        before = self._decode(self._start, self._num_shown)
        text = self._decode(self._start, len(self._ids))
        if text.endswith("\ufffd"):
            return ""
        self._start, self._num_shown = self._num_shown, len(self._ids)
        return self._release(text[len(before) :])

    def finish(self) -> str:
        """What was held back in case a stop string was coming."""
        held, self._held = self._held, ""
        return "" if self.stopped else held

    def _decode(self, first: int, last: int) -> str:
        return str(self._tokenizer.decode(self._ids[first:last], skip_special_tokens=True))

    def _release(self, text: str) -> str:
        if not self._stop:
            return text
        text = self._held + text
        found = [at for stop in self._stop if (at := text.find(stop)) >= 0]
        if found:
            self.stopped, self._held = True, ""
            return text[: min(found)]
        longest = max(len(stop) for stop in self._stop) - 1
        for length in range(min(longest, len(text)), 0, -1):
            if any(stop.startswith(text[-length:]) for stop in self._stop):
                self._held = text[-length:]
                return text[:-length]
        self._held = ""
        return text
