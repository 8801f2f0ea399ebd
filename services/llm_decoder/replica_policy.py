"""How many LLMDecoder replicas there should be: enough for the dialogs, and more when words come from old frames.

Ray Serve asks a `ReplicaPolicy` (the chart names it); the delays and bounds around its answer are Serve's own.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

from services.messages.dialog import DialogEvent, TokenEvent

FRAME_AGE = "frame_age_s"  # what replicas tell, and the policy reads
SPAN_S = 10.0


class FrameAges:
    """Of a replica's newest tokens. A stale one is left out: its camera is silent, which no decoder can mend."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._ages: deque[tuple[float, float]] = deque(maxlen=4096)  # when, and the age in seconds

    def note(self, events: Iterable[DialogEvent]) -> None:
        """Take in what is on its way to a dialog."""
        now = self._clock()
        for event in events:
            if isinstance(event, TokenEvent) and not event.stale:
                self._ages.append((now, event.frame_age_ms / 1000))

    def mean_s(self) -> float:
        """Over the last `SPAN_S` seconds; 0 when nothing was spoken."""
        oldest = self._clock() - SPAN_S
        while self._ages and self._ages[0][0] < oldest:
            self._ages.popleft()
        return sum(age for _, age in self._ages) / len(self._ages) if self._ages else 0.0


class ReplicaPolicy:
    """Follows dialogs and frame age. `frame_age_s`: with an older mean on any replica one more is wanted."""

    def __init__(self, *, frame_age_s: float) -> None:
        if frame_age_s <= 0:
            raise ValueError(f"frame_age_s: got {frame_age_s}, wanted more than 0")
        self._limit_s = frame_age_s

    def __call__(self, context: Any) -> tuple[float, dict[str, Any]]:
        """Serve's AutoscalingContext to the number of replicas and what to remember (nothing)."""
        by_dialogs = context.total_num_requests / context.config.get_target_ongoing_requests()
        ages = (context.aggregated_metrics or {}).get(FRAME_AGE, {}).values()
        by_age = context.current_num_replicas + 1 if any(age > self._limit_s for age in ages) else 0
        return max(by_dialogs, by_age), {}
