"""The gateway's metrics: what is in progress, and requests that failed."""

from __future__ import annotations

from types import TracebackType

from services.adapters.prometheus_recorder import PrometheusRecorder
from services.ports.metric_catalogue import (
    AUTH_FAILURES,
    RATE_LIMIT_FALLBACKS,
    REQUEST_ERRORS,
    REQUESTS_RUNNING,
    REQUESTS_WAITING,
    VIEWERS,
    WEBSOCKETS,
    Metric,
)
from services.ports.recorder import MetricsRecorder


class InProgress:
    """A gauge of what is in progress: one more inside each `with` block, or through `add`. For one thread."""

    def __init__(self, recorder: MetricsRecorder, metric: Metric) -> None:
        self._recorder, self._metric = recorder, metric
        self._count = 0
        self.add(0)

    def add(self, change: int) -> None:
        """Change the count."""
        self._count += change
        self._recorder.set(self._metric, self._count)

    def __enter__(self) -> None:
        self.add(1)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.add(-1)


class GatewayMetrics:
    """The metrics of one gateway. Without `recorder` they go to a registry of their own."""

    def __init__(self, recorder: MetricsRecorder | None = None) -> None:
        self.recorder: MetricsRecorder = recorder or PrometheusRecorder("gateway")
        self.running = InProgress(self.recorder, REQUESTS_RUNNING)
        self.waiting = InProgress(self.recorder, REQUESTS_WAITING)
        self.viewers = InProgress(self.recorder, VIEWERS)
        self.websockets = InProgress(self.recorder, WEBSOCKETS)

    def record_error(self, code: str, status: int) -> None:
        """Count a failed request by its error code and HTTP status."""
        self.recorder.count(REQUEST_ERRORS, code, str(status))
        if status in (401, 403):
            self.recorder.count(AUTH_FAILURES, code)

    def record_rate_limit_fallback(self) -> None:
        """Count a request whose rate limit was counted locally because Redis could not be reached."""
        self.recorder.count(RATE_LIMIT_FALLBACKS)
