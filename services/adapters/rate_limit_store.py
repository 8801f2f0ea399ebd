"""The storage of the rate limits on Redis: `limits` counts there, so that all gateways share one count.

streamchat:rate-limit:requests/<key id>/<limit>/1/minute   list   times of the key's requests, newest first
"""

from __future__ import annotations

from limits.aio.storage import RedisStorage

from services.adapters.redis_connection import credentials
from services.settings import Settings

KEY_PREFIX = "streamchat:rate-limit"
SOCKET_TIMEOUT_S = 1.0


def rate_limit_storage(settings: Settings) -> RedisStorage | None:
    """The storage in the settings' Redis; None without a Redis URL. It connects with the first request."""
    if not settings.redis_url:
        return None
    return RedisStorage(
        f"async+{settings.redis_url}",
        implementation="redispy",
        key_prefix=KEY_PREFIX,
        socket_timeout=SOCKET_TIMEOUT_S,
        socket_connect_timeout=SOCKET_TIMEOUT_S,
        **credentials(settings),
    )
