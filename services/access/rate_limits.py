"""How much a key may ask: so many requests a minute, and so many open at once.

Each gateway replica counts for itself and grants its share of the whole.
"""

from __future__ import annotations

import math
import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass

from services.access.api_keys import Key
from services.messages.api_error import ApiError
from services.settings import Settings


@dataclass(slots=True)
class Use:
    """What a key has left. A bucket of a minute's requests fills evenly, so a burst is fine and a flood is not."""

    left: float
    filled_at: float  # monotonic
    num_open: int = 0


class Limits:
    """One event loop uses it."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._uses: dict[str, Use] = {}

    def take(self, key: Key) -> None:
        """Count a request; ApiError 429 when the minute's are used up."""
        limit = self._share(key.requests_per_minute or self._settings.requests_per_minute)
        use = self._use(key)
        now = time.monotonic()
        use.left = min(limit, use.left + (now - use.filled_at) * limit / 60)
        use.filled_at = now
        if use.left < 1:
            message = f"this key has made its {limit} requests a minute"
            raise ApiError(429, "too_many_requests", message, retry_after_s=(1 - use.left) * 60 / limit)
        use.left -= 1

    @contextmanager
    def place(self, key: Key) -> Generator[None]:
        """A place among the key's open requests; ApiError 429 when all are taken."""
        limit = self._share(key.requests_at_once or self._settings.requests_at_once)
        use = self._use(key)
        if use.num_open >= limit:
            raise ApiError(
                429, "too_many_open_requests", f"this key has {limit} requests open, as many as it may"
            )
        use.num_open += 1
        try:
            yield
        finally:
            use.num_open -= 1

    def _use(self, key: Key) -> Use:
        return self._uses.setdefault(key.id, Use(left=math.inf, filled_at=time.monotonic()))

    def _share(self, limit: int) -> int:
        return math.ceil(limit / self._settings.gateway_replicas)
