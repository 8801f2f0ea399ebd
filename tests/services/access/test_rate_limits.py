"""Rate limits: one count for all gateways, a local count when the shared storage fails."""

from __future__ import annotations

import asyncio
import time

import httpx
import pytest
from limits.aio.storage import MemoryStorage
from websockets.sync.client import connect

from services.access.api_keys import ApiKey, edit_keys, make_key
from services.access.authentication import PUBLIC_PATHS
from services.access.rate_limits import STORAGE_TIMEOUT_S, RateLimits
from services.messages.api_error import ApiError
from services.settings import Settings
from tests.services.access.keyed_gateway import Keys, answer_to, bearer, knock, receive, routes, send
from tests.services.served_gateway import Gateway, wait_for


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


def test_a_key_that_asks_too_often_is_told_when_to_come_back(
    served: Gateway, http: httpx.Client, keys: Keys
) -> None:
    headers = bearer(keys["spent"])
    assert http.get("/v1/models", headers=headers).status_code == 200
    for method, path in routes(served):
        if path in PUBLIC_PATHS:
            continue
        if method == "WS":
            assert knock(served, path, headers) == 429
            continue
        answer = answer_to(http, method, path, headers=headers)
        assert answer.status_code == 429, (method, path)
        assert 1 <= int(answer.headers["retry-after"]) <= 60
    assert http.get("/v1/models", headers=bearer(keys["ask"])).status_code == 200  # others are not meant


def test_a_key_has_so_many_places(served: Gateway, http: httpx.Client, keys: Keys) -> None:
    headers = bearer(keys["narrow"])
    with connect(f"ws{served.url[4:]}/v1/realtime", additional_headers=headers):
        answer = http.get("/v1/models", headers=headers)
        assert (answer.status_code, answer.json()["error"]["code"]) == (429, "too_many_open_requests")
        assert int(answer.headers["retry-after"]) >= 1
        assert knock(served, "/v1/realtime", headers) == 429
    wait_for(lambda: http.get("/v1/models", headers=headers).status_code == 200)
    with http.stream("GET", "/v1/pictures", headers=headers):
        assert http.get("/v1/models", headers=headers).status_code == 429
    wait_for(lambda: http.get("/v1/models", headers=headers).status_code == 200)


def test_events_of_a_session_count_as_requests(served: Gateway, keys: Keys) -> None:
    with edit_keys(keys.path) as kept:
        text, key = make_key("chatty", role="ask", cameras=("*",), requests_per_minute=3)
        kept[key.id] = key
    wait_for(lambda: knock(served, "/v1/models", bearer(text)) != 401)  # counts as well: two are left
    with connect(f"ws{served.url[4:]}/v1/realtime", additional_headers=bearer(text)) as socket:
        assert receive(socket)["type"] == "session.created"
        codes: list[str] = []
        for _ in range(2):
            send(socket, {"type": "response.cancel"})
            codes.append(receive(socket)["error"]["code"])
    assert codes == ["response_cancel_not_active", "too_many_requests"]
