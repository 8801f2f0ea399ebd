"""What the gateway counts beside single measurements: levels that rise and fall, and failed requests."""

from __future__ import annotations

from types import TracebackType

from services.adapters.prometheus_recorder import PrometheusRecorder
from services.ports.metric_catalogue import (
    AUTH_FAILURES,
    REQUEST_ERRORS,
    REQUESTS_RUNNING,
    REQUESTS_WAITING,
    VIEWERS,
    WEBSOCKETS,
    Metric,
)
from services.ports.recorder import MetricsRecorder


class Level:
    """How many there are now: one more within each `with`, or by `add`. Of the event loop's thread alone."""

    def __init__(self, recorder: MetricsRecorder, metric: Metric) -> None:
        self._recorder, self._metric = recorder, metric
        self._now = 0
        self.add(0)

    def add(self, number: int) -> None:
        """More, or fewer."""
        self._now += number
        self._recorder.set(self._metric, self._now)

    def __enter__(self) -> None:
        self.add(1)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.add(-1)


class GatewayMetrics:
    """Of one gateway; without `recorder` in a registry of its own."""

    def __init__(self, recorder: MetricsRecorder | None = None) -> None:
        self.recorder: MetricsRecorder = recorder or PrometheusRecorder("gateway")
        self.running = Level(self.recorder, REQUESTS_RUNNING)
        self.waiting = Level(self.recorder, REQUESTS_WAITING)
        self.viewers = Level(self.recorder, VIEWERS)
        self.websockets = Level(self.recorder, WEBSOCKETS)

    def failed(self, code: str, status: int) -> None:
        """Count a failed request under its error code and HTTP status."""
        self.recorder.count(REQUEST_ERRORS, code, str(status))
        if status in (401, 403):
            self.recorder.count(AUTH_FAILURES, code)
