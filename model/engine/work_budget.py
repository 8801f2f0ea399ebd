"""How much work fits beside the decoding steps."""

from __future__ import annotations

import math


class WorkBudget:
    """How much goes into a piece, so that it takes a part of the time allowed: learnt from the pieces before."""

    def __init__(self, least: int, most: int) -> None:
        self._least, self._most = least, most
        self._each_s: float | None = None

    def num_tokens(self, allowed_s: float) -> int:
        """Of tokens, for a piece that is to take less than half of `allowed_s`; little as long as nothing is known."""
        if math.isinf(allowed_s):
            return self._most
        if self._each_s is None:
            return self._least
        return min(max(int(0.4 * allowed_s / self._each_s), self._least), self._most)

    def record(self, num: int, took_s: float) -> None:
        """A piece of so many tokens took this long. Some layers take longer: the slow ones are remembered."""
        each_s = took_s / num
        self._each_s = each_s if self._each_s is None else max(each_s, 0.8 * self._each_s + 0.2 * each_s)
