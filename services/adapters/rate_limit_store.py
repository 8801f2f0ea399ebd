"""The storage of the rate limits on Redis: `limits` counts there, so that all gateways share one count.

streamchat:rate-limit:requests/<key id>/<limit>/1/minute   list   times of the key's requests, newest first
"""

from __future__ import annotations

from typing import Any

from limits.aio.storage import RedisClusterStorage, RedisSentinelStorage, RedisStorage

from services.adapters.redis_connection import credentials, sentinel_credentials
from services.settings import RedisAddress, Settings

KEY_PREFIX = "streamchat:rate-limit"
SOCKET_TIMEOUT_S = 1.0
TIMEOUTS = {"socket_timeout": SOCKET_TIMEOUT_S, "socket_connect_timeout": SOCKET_TIMEOUT_S}


def rate_limit_storage(settings: Settings) -> RedisStorage | None:
    """The storage in the settings' Redis; None without a Redis URL. It connects with the first request."""
    if not settings.redis_url:
        return None
    address = RedisAddress.parse(settings.redis_url)
    options: dict[str, Any] = {
        "implementation": "redispy",
        "key_prefix": KEY_PREFIX,
        **TIMEOUTS,
        **credentials(settings),
    }
    if not address.kind:
        return RedisStorage(f"async+{settings.redis_url}", **options)
    # `limits` knows no rediss:// here, and takes a database for a part of the master's name.
    if address.tls:
        options["ssl"] = True
    url = f"async+redis+{address.kind}://{','.join(f'{host}:{port}' for host, port in address.hosts)}"
    if address.kind == "cluster":
        return RedisClusterStorage(url, **options)
    return RedisSentinelStorage(
        url,
        service_name=address.service,
        use_replicas=False,
        sentinel_kwargs=sentinel_credentials(settings) | TIMEOUTS,
        db=address.db,
        **options,
    )
