"""The store is asked off the event loop."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest

from services.gateway import store_threads
from services.gateway.store_threads import StoreThreads
from services.messages.api_error import ApiError
from services.ports.frame_store import FrameStore, StoreLost
from tests.services.adapters.memory_frame_store import MemoryFrameStore
from tests.services.served_gateway import frame


async def test_calls_run_in_threads_and_a_blocking_read_delays_no_other() -> None:
    store = MemoryFrameStore()
    threads = StoreThreads(store)
    here = threading.get_ident()
    assert await threads.call(lambda store: threading.get_ident()) != here
    waiting = threads.call(lambda store: store.newer({"a": "0-0"}, block_s=10), blocking=True)
    assert await threads.call(lambda store: store.append(frame("a", 1), capacity=2))
    assert [each.camera for each in await waiting] == ["a"]
    threads.close()


async def test_a_lost_store_is_a_503() -> None:
    def lost(store: FrameStore) -> None:
        raise StoreLost("away")

    threads = StoreThreads(MemoryFrameStore())
    with pytest.raises(ApiError) as raised:
        await threads.call(lost)
    assert (raised.value.status, raised.value.code) == (503, "store_lost")
    threads.close()


async def test_nobody_waits_long_for_a_store_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_threads, "CALL_TIMEOUT_S", 0.05)
    ended = threading.Event()
    threads = StoreThreads(MemoryFrameStore())
    hanging = [threads.call(lambda store: ended.wait()) for _ in range(3 * store_threads.NUM_THREADS)]
    began = time.monotonic()
    raised = await asyncio.gather(*hanging, return_exceptions=True)
    assert {getattr(error, "code", error) for error in raised} == {"store_lost"}
    assert time.monotonic() - began < 2.0
    ended.set()
    assert await threads.call(lambda store: store.cameras()) == []
    threads.close()
