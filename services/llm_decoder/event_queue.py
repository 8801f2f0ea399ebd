"""The events of one dialog on their way from the engine's thread to the event loop."""

from __future__ import annotations

import asyncio
from collections import deque

from services.messages.dialog import DialogEvent


class EventQueue:
    """Filled by any thread, read by the event loop that created it."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._events: deque[DialogEvent] = deque()
        self._filled = asyncio.Event()

    def put(self, events: list[DialogEvent]) -> None:
        """Add events. From any thread."""
        self._events.extend(events)
        try:
            self._loop.call_soon_threadsafe(self._filled.set)
        except RuntimeError:  # the event loop has ended, and its readers with it
            self._events.clear()

    async def take(self) -> list[DialogEvent]:
        """All waiting events, at least one: a slow reader gets several tokens at once."""
        while not self._events:
            self._filled.clear()
            if not self._events:
                await self._filled.wait()
        taken: list[DialogEvent] = []
        while self._events:
            taken.append(self._events.popleft())
        return taken
