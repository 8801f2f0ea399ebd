"""Whether a thread still moves. A thread that hangs looks alive, so health depends on progress."""

from __future__ import annotations

import time
from collections.abc import Callable


class ThreadProgress:
    """Marked by one thread, read by others."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._marked_s: float | None = None

    def mark(self) -> None:
        """The thread has moved, and goes on with its work."""
        self._marked_s = self._clock()

    def rest(self) -> None:
        """The thread has no work."""
        self._marked_s = None

    @property
    def stuck_s(self) -> float:
        """Seconds since the thread last moved; 0 while it has no work."""
        marked_s = self._marked_s
        return 0.0 if marked_s is None else self._clock() - marked_s
