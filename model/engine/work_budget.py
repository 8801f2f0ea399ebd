"""How much prefill or frame ingest fits between two decoding steps."""

from __future__ import annotations

import math


class WorkBudget:
    """Chooses the size of a piece of work from the time that earlier pieces took."""

    def __init__(self, min_tokens: int, max_tokens: int) -> None:
        self._min_tokens, self._max_tokens = min_tokens, max_tokens
        self._token_s: float | None = None  # seconds a token

    def num_tokens(self, allowed_s: float) -> int:
        """Tokens of a piece that takes less than half of `allowed_s`; the minimum until a piece was measured."""
        if math.isinf(allowed_s):
            return self._max_tokens
        if self._token_s is None:
            return self._min_tokens
        return min(max(int(0.4 * allowed_s / self._token_s), self._min_tokens), self._max_tokens)

    def record(self, num_tokens: int, took_s: float) -> None:
        """A piece of `num_tokens` took `took_s`. Slow pieces count at once, fast ones slowly: layers differ."""
        token_s = took_s / num_tokens
        self._token_s = (
            token_s if self._token_s is None else max(token_s, 0.8 * self._token_s + 0.2 * token_s)
        )
