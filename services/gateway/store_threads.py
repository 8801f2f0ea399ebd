"""Threads for the frame store's calls: they block, and the gateway's event loop must not."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from services.messages.api_error import ApiError
from services.ports.frame_store import FrameStore, StoreLost

NUM_THREADS = 8
CALL_TIMEOUT_S = 3.0
Result = TypeVar("Result")


class StoreThreads:
    """Calls the store in a bounded number of threads. A slow store delays pictures, but no tokens."""

    def __init__(self, store: FrameStore) -> None:
        self._store = store
        self._threads = ThreadPoolExecutor(NUM_THREADS, thread_name_prefix="frame-store")
        # The picture feed's blocking reads have their own thread, so that they delay no other call.
        self._blocking_thread = ThreadPoolExecutor(1, thread_name_prefix="frame-store-reader")

    async def call(self, function: Callable[[FrameStore], Result], *, blocking: bool = False) -> Result:
        """Run `function(store)` in a thread.

        Raises ApiError 503 `store_lost` if the store cannot be reached, or if there is no answer in time: people must
        not queue up behind a store that hangs.
        """
        threads = self._blocking_thread if blocking else self._threads
        try:
            async with asyncio.timeout(CALL_TIMEOUT_S):
                return await asyncio.get_running_loop().run_in_executor(threads, function, self._store)
        except (StoreLost, TimeoutError) as error:
            message = "the store of the cameras' frames cannot be reached: try again shortly"
            raise ApiError(503, "store_lost", message, retry_after_s=1) from error

    def close(self) -> None:
        """End the threads. Calls in progress finish first."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._blocking_thread.shutdown(wait=False, cancel_futures=True)
