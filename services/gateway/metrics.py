"""What the gateway counts beside single measurements: levels that rise and fall, and failed requests."""

from __future__ import annotations

from types import TracebackType

from services.adapters.metric_catalogue import (
    AUTH_FAILURES,
    REQUEST_ERRORS,
    REQUESTS_RUNNING,
    REQUESTS_WAITING,
    VIEWERS,
    WEBSOCKETS,
    Metric,
)
from services.ports.recorder import Meters, PrometheusMeters


class Level:
    """How many there are now: one more within each `with`, or by `add`. Of the event loop's thread alone."""

    def __init__(self, meters: Meters, metric: Metric) -> None:
        self._meters, self._metric = meters, metric
        self._now = 0
        self.add(0)

    def add(self, number: int) -> None:
        """More, or fewer."""
        self._now += number
        self._meters.set(self._metric, self._now)

    def __enter__(self) -> None:
        self.add(1)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.add(-1)


class GatewayMetrics:
    """Of one gateway; without `meters` in a registry of its own."""

    def __init__(self, meters: Meters | None = None) -> None:
        self.meters: Meters = meters or PrometheusMeters("gateway")
        self.running = Level(self.meters, REQUESTS_RUNNING)
        self.waiting = Level(self.meters, REQUESTS_WAITING)
        self.viewers = Level(self.meters, VIEWERS)
        self.websockets = Level(self.meters, WEBSOCKETS)

    def failed(self, code: str, status: int) -> None:
        """Count a failed request under its error code and HTTP status."""
        self.meters.count(REQUEST_ERRORS, code, str(status))
        if status in (401, 403):
            self.meters.count(AUTH_FAILURES, code)
