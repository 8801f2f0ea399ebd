"""Rate limits: one count for all gateways, a local count when the shared storage fails."""

from __future__ import annotations

import asyncio
import time

import pytest
from limits.aio.storage import MemoryStorage

from services.access.api_keys import ApiKey, make_key
from services.access.rate_limits import STORAGE_TIMEOUT_S, RateLimits
from services.messages.api_error import ApiError
from services.settings import Settings


class BrokenStorage(MemoryStorage):
    """Fails, or (`hangs`) never answers, until it is `repaired`."""

    def __init__(self, *, hangs: bool = False) -> None:
        super().__init__()
        self.hangs = hangs
        self.repaired = False
        self.num_calls = 0

    async def acquire_entry(self, key: str, limit: int, expiry: int, amount: int = 1) -> bool:
        self.num_calls += 1
        if self.repaired:
            return await super().acquire_entry(key, limit, expiry, amount)
        if self.hangs:
            await asyncio.Event().wait()
        raise ConnectionError("no storage")


def key_with(**limits: int) -> ApiKey:
    return make_key("me", role="ask", cameras=("*",), **limits)[1]


async def num_admitted(limits: RateLimits, key: ApiKey, num_requests: int) -> int:
    refusals: list[ApiError] = []
    for _ in range(num_requests):
        try:
            await limits.count_request(key)
        except ApiError as error:
            refusals.append(error)
    assert all((error.status, error.code) == (429, "too_many_requests") for error in refusals)
    assert all(0 < (error.retry_after_s or 0) <= 60 for error in refusals)
    return num_requests - len(refusals)


async def test_gateways_with_one_storage_share_one_count() -> None:
    storage, key, settings = MemoryStorage(), key_with(requests_per_minute=10), Settings(gateway_replicas=2)
    one, other = RateLimits(settings, storage), RateLimits(settings, storage)
    assert await num_admitted(one, key, 7) == 7
    assert await num_admitted(other, key, 7) == 3
    assert await num_admitted(other, key_with(), 7) == 7  # another key has its own count


async def test_without_a_storage_a_gateway_grants_its_share() -> None:
    key = key_with(requests_per_minute=10)
    assert await num_admitted(RateLimits(Settings(gateway_replicas=2)), key, 12) == 5


@pytest.mark.parametrize("hangs", [False, True])
async def test_a_storage_that_fails_locks_nobody_out(hangs: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    storage, key = BrokenStorage(hangs=hangs), key_with(requests_per_minute=10)
    fallbacks: list[None] = []
    limits = RateLimits(Settings(gateway_replicas=2), storage, lambda: fallbacks.append(None))
    began_s = time.monotonic()
    assert await num_admitted(limits, key, 12) == 5
    assert time.monotonic() - began_s < 4 * STORAGE_TIMEOUT_S  # only the first request waited for it
    assert (len(fallbacks), storage.num_calls) == (12, 1)

    storage.repaired = True
    monkeypatch.setattr(limits, "_retry_storage_at_s", 0.0)
    assert await num_admitted(limits, key, 12) == 10
    assert len(fallbacks) == 12


async def test_a_burst_does_not_wait_one_by_one_for_a_storage_that_hangs() -> None:
    limits = RateLimits(Settings(), BrokenStorage(hangs=True))
    began_s = time.monotonic()
    await asyncio.gather(*(limits.count_request(key_with()) for _ in range(200)))
    assert time.monotonic() - began_s < 4 * STORAGE_TIMEOUT_S


def test_open_requests_are_given_back() -> None:
    limits, key = RateLimits(Settings(gateway_replicas=2)), key_with(requests_at_once=3)
    with limits.open_request(key), limits.open_request(key):
        with pytest.raises(ApiError) as refused, limits.open_request(key):
            pass
        assert refused.value.code == "too_many_open_requests"
    with limits.open_request(key):
        pass
