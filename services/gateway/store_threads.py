"""The frame store's calls block; the gateway's event loop must not. They run here, in a few threads."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from services.messages.api_error import ApiError
from services.ports.frame_store import FrameStore, StoreLost

NUM_THREADS = 8
Answer = TypeVar("Answer")


class StoreThreads:
    """Asks the store from a bounded number of threads, so a slow store delays pictures and never words."""

    def __init__(self, store: FrameStore) -> None:
        self._store = store
        self._threads = ThreadPoolExecutor(NUM_THREADS, thread_name_prefix="frame-store")
        # The picture feed's blocking reads have a thread of their own and keep none of the others waiting.
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="frame-store-reader")

    async def ask(self, call: Callable[[FrameStore], Answer], *, blocking: bool = False) -> Answer:
        """`call(store)` in a thread; raises ApiError 503 `store_lost` when the store cannot be reached."""
        threads = self._reader if blocking else self._threads
        try:
            return await asyncio.get_running_loop().run_in_executor(threads, call, self._store)
        except StoreLost as error:
            message = "the store of the cameras' frames cannot be reached: try again shortly"
            raise ApiError(503, "store_lost", message, retry_after_s=1) from error

    def close(self) -> None:
        """End the threads; calls under way finish first."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._reader.shutdown(wait=False, cancel_futures=True)
