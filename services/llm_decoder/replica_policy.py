"""The number of LLMDecoder replicas: enough for the dialogs, and more when tokens come from old frames.

Ray Serve calls a `ReplicaPolicy` (the chart names it), and applies its own delays and bounds to the result.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

from services.messages.dialog import DialogEvent, TokenEvent

FRAME_AGE = "frame_age_s"  # the key under which replicas report and the policy reads
SPAN_S = 10.0


class FrameAges:
    """Frame ages of the newest tokens of a replica, without stale ones: no replica can help a silent camera."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._ages: deque[tuple[float, float]] = deque(maxlen=4096)  # when, and the age in seconds

    def record(self, events: Iterable[DialogEvent]) -> None:
        """Record the tokens among events."""
        now = self._clock()
        for event in events:
            if isinstance(event, TokenEvent) and event.frame_age_ms is not None and not event.stale:
                self._ages.append((now, event.frame_age_ms / 1000))

    def mean_s(self) -> float:
        """The mean over the last `SPAN_S` seconds; 0 without tokens."""
        oldest = self._clock() - SPAN_S
        while self._ages and self._ages[0][0] < oldest:
            self._ages.popleft()
        return sum(age for _, age in self._ages) / len(self._ages) if self._ages else 0.0


class ReplicaPolicy:
    """Scales by dialogs and frame age: a mean above `frame_age_s` on any replica adds one replica."""

    def __init__(self, *, frame_age_s: float) -> None:
        if frame_age_s <= 0:
            raise ValueError(f"frame_age_s: got {frame_age_s}, wanted more than 0")
        self._limit_s = frame_age_s

    def __call__(self, context: Any) -> tuple[float, dict[str, Any]]:
        """The number of replicas for Serve's AutoscalingContext, and the state to keep (none)."""
        by_dialogs = context.total_num_requests / context.config.get_target_ongoing_requests()
        ages = (context.aggregated_metrics or {}).get(FRAME_AGE, {}).values()
        by_age = context.current_num_replicas + 1 if any(age > self._limit_s for age in ages) else 0
        return max(by_dialogs, by_age), {}
