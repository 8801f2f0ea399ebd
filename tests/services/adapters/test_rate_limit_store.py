"""The rate limits' storage on a real Redis-protocol server, over TLS, as a user with the documented rights."""

from __future__ import annotations

import pytest
from limits import RateLimitItemPerMinute
from limits.aio.strategies import MovingWindowRateLimiter
from redis import Redis
from redis.exceptions import RedisError

from services.adapters.rate_limit_store import KEY_PREFIX, rate_limit_storage
from services.local.embedded_servers import Store
from services.settings import Settings
from tests.secured_servers import SecuredServers


async def test_two_gateways_share_one_count(secured: SecuredServers, unique: str) -> None:
    settings = Settings(
        redis_url=secured.redis_url,
        redis_username=secured.username,
        redis_password=secured.password,  # type: ignore[arg-type]
        redis_ca_file=str(secured.authority),
    )
    item = RateLimitItemPerMinute(4)
    storages = [rate_limit_storage(settings) for _ in range(2)]
    one, other = (MovingWindowRateLimiter(storage) for storage in storages if storage is not None)
    assert [await limiter.hit(item, unique) for limiter in (one, other, one, other, one)] == [True] * 4 + [
        False
    ]
    assert (await other.get_window_stats(item, unique)).remaining == 0


async def test_its_keys_expire(store_server: Store, unique: str) -> None:
    storage = rate_limit_storage(Settings(redis_url=store_server.url))
    assert storage is not None
    assert await MovingWindowRateLimiter(storage).hit(RateLimitItemPerMinute(4), unique)
    with Redis.from_url(store_server.url) as redis:
        [name] = redis.keys(f"{KEY_PREFIX}:*{unique}*")
        assert 0 < redis.ttl(name) <= 60


def test_without_redis_there_is_none() -> None:
    assert rate_limit_storage(Settings()) is None


@pytest.mark.parametrize("url", ["redis://127.0.0.1:9/0", "rediss://127.0.0.1:9/0"])
async def test_a_server_that_is_away_raises(url: str) -> None:
    storage = rate_limit_storage(Settings(redis_url=url))
    assert storage is not None
    with pytest.raises((OSError, RedisError)):
        await MovingWindowRateLimiter(storage).hit(RateLimitItemPerMinute(4), "key")
