"""How much prefill or frame ingest fits between two decoding steps."""

from __future__ import annotations

import math

DECAY = 0.9  # of a piece's weight in the fit, with each later piece
MIN_SPREAD = 0.01  # variance of sizes over their squared mean: below it the fixed cost cannot be told


class WorkBudget:
    """Chooses the size of a piece of work: it costs a fixed time and a time per token, fitted to earlier pieces."""

    def __init__(self, min_tokens: int, max_tokens: int) -> None:
        self._min_tokens, self._max_tokens = min_tokens, max_tokens
        self._sums = (0.0,) * 5  # weighted, over pieces of n tokens and t seconds: 1, n, t, n * n, n * t
        self._token_s = 0.0  # seconds a token
        self._fixed_tokens = 0.0  # the fixed cost of a piece is that of so many tokens
        self._last_tokens = 0

    def num_tokens(self, allowed_s: float) -> int:
        """Tokens of a piece that takes less than half of `allowed_s`; the minimum until a piece was measured.

        Where the fixed cost alone takes more, the tokens take as long as it: smaller pieces would save little.
        """
        if math.isinf(allowed_s):
            return self._max_tokens
        if not self._last_tokens:
            return self._min_tokens
        last, fixed = self._last_tokens, self._fixed_tokens
        fitting = 0.4 * allowed_s / self._token_s
        # At most twice the last piece, unless more fits even if only tokens cost.
        num = min(max(fitting - fixed, fixed), max(2 * last, fitting * last / (last + fixed)))
        # The minimum again and again does not tell the fixed cost.
        least = self._min_tokens * (2 if last == self._min_tokens and self._spread() < MIN_SPREAD else 1)
        return min(max(int(num), least), self._max_tokens)

    def record(self, num_tokens: int, took_s: float) -> None:
        """A piece of `num_tokens` took `took_s`. Slow pieces count at once, fast ones slowly: layers differ."""
        new = (1.0, num_tokens, took_s, num_tokens**2, num_tokens * took_s)
        self._sums = tuple(DECAY * old + each for old, each in zip(self._sums, new, strict=True))
        expected_s = self._token_s * (num_tokens + self._fixed_tokens)
        if self._spread() >= MIN_SPREAD:
            self._fixed_tokens = self._fit()
        slow_s = max(took_s, 0.8 * expected_s + 0.2 * took_s)
        self._token_s, self._last_tokens = slow_s / (num_tokens + self._fixed_tokens), num_tokens

    def _spread(self) -> float:
        weight, tokens, _, squares, _ = self._sums
        return weight * squares / tokens**2 - 1

    def _fit(self) -> float:
        """The fixed cost of a piece over that of a token, by least squares: 0 to `max_tokens`."""
        weight, tokens, seconds, squares, products = self._sums
        fixed = max(seconds * squares - tokens * products, 0.0)
        each = weight * products - tokens * seconds
        return min(fixed / each, self._max_tokens) if each > 0 else self._max_tokens
