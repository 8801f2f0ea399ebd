"""The rate limits' storage on a real Redis-protocol server, over TLS, as a user with the documented rights."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from limits import RateLimitItemPerMinute
from limits.aio.storage import RedisSentinelStorage
from limits.aio.strategies import MovingWindowRateLimiter
from redis import Redis
from redis.exceptions import RedisError

from services.adapters.rate_limit_store import KEY_PREFIX, rate_limit_storage
from services.local.embedded_servers import Store
from services.settings import Settings
from tests.secured_servers import SecuredServers

LIMIT = RateLimitItemPerMinute(4)


@asynccontextmanager
async def limiter(**settings: Any) -> AsyncGenerator[MovingWindowRateLimiter]:
    """What one gateway counts with."""
    storage = rate_limit_storage(Settings(**settings))
    assert storage is not None
    try:
        yield MovingWindowRateLimiter(storage)
    finally:
        bridge: Any = storage.bridge
        await bridge.get_connection().aclose()
        for sentinel in getattr(getattr(bridge, "sentinel", None), "sentinels", ()):
            await sentinel.aclose()
        if isinstance(storage, RedisSentinelStorage):
            await bridge.get_connection().connection_pool.disconnect()


async def test_two_gateways_share_one_count(secured: SecuredServers, unique: str) -> None:
    settings = {
        "redis_url": secured.redis_url,
        "redis_username": secured.username,
        "redis_password": secured.password,
        "redis_ca_file": str(secured.authority),
    }
    async with limiter(**settings) as one, limiter(**settings) as other:
        admitted = [await each.hit(LIMIT, unique) for each in (one, other, one, other, one)]
        assert admitted == [True, True, True, True, False]
        assert (await other.get_window_stats(LIMIT, unique)).remaining == 0


async def test_its_keys_expire(store_server: Store, unique: str) -> None:
    async with limiter(redis_url=store_server.url) as one:
        assert await one.hit(LIMIT, unique)
    with Redis.from_url(store_server.url) as redis:
        [name] = redis.keys(f"{KEY_PREFIX}:*{unique}*")
        assert 0 < redis.ttl(name) <= 60


@pytest.mark.parametrize("url", ["redis://127.0.0.1:9/0", "rediss://127.0.0.1:9/0"])
async def test_a_server_that_is_away_raises(url: str) -> None:
    async with limiter(redis_url=url) as one:
        with pytest.raises((OSError, RedisError)):
            await one.hit(LIMIT, "key")


def test_without_redis_there_is_none() -> None:
    assert rate_limit_storage(Settings()) is None
