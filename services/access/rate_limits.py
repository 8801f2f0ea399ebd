"""Rate limits of API keys: requests per minute, and requests open at once.

Requests per minute are counted by the `limits` library over a moving window, on the Redis that all gateways share.
While Redis cannot be reached, each gateway counts in its own memory and grants its share of the limit: a Redis
failure must neither lock people out nor delay their requests. Open requests are counted per gateway, because a
gateway that dies cannot give back what it counted elsewhere; each grants its share, and at most half of what it holds.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager

from limits import RateLimitItemPerMinute
from limits.aio.storage import MemoryStorage, Storage
from limits.aio.strategies import MovingWindowRateLimiter

from services.access.api_keys import ApiKey
from services.access.shared_places import SharedPlaces
from services.messages.api_error import ApiError
from services.settings import Settings

STORAGE_TIMEOUT_S = 0.25
RETRY_STORAGE_S = 2.0  # after a failure, the shared storage is left alone for this time
MAX_OPEN_REQUESTS = 4096  # of one gateway; `services/app.py` tells Ray Serve the same
MAX_STORAGE_CALLS = 16  # at once, so a burst of requests opens no more connections

log = logging.getLogger(__name__)


class RateLimits:
    """The limits of all keys. To be used from one event loop."""

    def __init__(
        self,
        settings: Settings,
        storage: Storage | None = None,
        on_fallback: Callable[[], None] = lambda: None,
    ) -> None:
        """`storage` is shared by all gateways; without one, requests are counted in this process.

        `on_fallback` is called for each request that had to be counted locally because the storage failed.
        """
        self._settings = settings
        self._shared = None if storage is None else MovingWindowRateLimiter(storage)
        self._local = MovingWindowRateLimiter(MemoryStorage())
        self._on_fallback = on_fallback
        self._storage_calls = asyncio.Semaphore(MAX_STORAGE_CALLS)
        self._retry_storage_at_s = 0.0  # monotonic
        self._open = SharedPlaces(MAX_OPEN_REQUESTS, what="open requests", code="too_many_open_requests")

    async def count_request(self, key: ApiKey) -> None:
        """Count a request. Raises ApiError 429 if the key has used up its requests per minute."""
        limit = key.requests_per_minute or self._settings.requests_per_minute
        wait_s = await self._shared_wait_s(key, limit)
        if wait_s is None:
            limit = self._share(limit)
            wait_s = await _wait_s(self._local, key, limit)
        if wait_s > 0:
            message = f"this key has made its {limit} requests a minute"
            raise ApiError(429, "too_many_requests", message, retry_after_s=wait_s)

    def open_request(self, key: ApiKey) -> AbstractContextManager[None]:
        """Count a request as open during the block. Raises ApiError 429 if too many are open already."""
        limit = self._share(key.requests_at_once or self._settings.requests_at_once)
        return self._open.hold(key.id, num_of_key=limit)

    async def _shared_wait_s(self, key: ApiKey, limit: int) -> float | None:
        """Like `_wait_s`, on the shared storage; None if there is none or it fails."""
        if self._shared is None:
            return None
        if time.monotonic() >= self._retry_storage_at_s:
            try:
                async with asyncio.timeout(STORAGE_TIMEOUT_S), self._storage_calls:
                    return await _wait_s(self._shared, key, limit)
            except Exception as error:  # whatever is wrong with the storage, requests are served
                if (
                    time.monotonic() >= self._retry_storage_at_s
                ):  # log once for all requests that failed together
                    log.warning("rate limits are counted locally: %r", error)
                self._retry_storage_at_s = time.monotonic() + RETRY_STORAGE_S
        self._on_fallback()
        return None

    def _share(self, limit: int) -> int:
        """What one gateway grants of a limit when it counts alone."""
        return math.ceil(limit / self._settings.gateway_replicas)


async def _wait_s(limiter: MovingWindowRateLimiter, key: ApiKey, limit: int) -> float:
    """Count a request of the key: 0 if it is within the limit, else the seconds to wait."""
    item = RateLimitItemPerMinute(limit, namespace="requests")
    if await limiter.hit(item, key.id):
        return 0.0
    window = await limiter.get_window_stats(item, key.id)
    return max(0.001, window.reset_time - time.time())
