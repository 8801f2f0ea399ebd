"""The port of the metrics: a service reports measurements to a recorder under the names of the metric catalogue.

In a Ray replica they go to Ray's own metrics (`services/adapters/ray_recorder.py`), elsewhere to a Prometheus registry
(`services/adapters/prometheus_recorder.py`).
"""

from __future__ import annotations

from typing import Protocol

from services.ports.metric_catalogue import Metric

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"  # of `exposition`
CLIP = "(clip)"  # the label in place of a camera when the question came with a clip


class MetricsRecorder(Protocol):
    """Records measurements. Thread-safe; never raises for a value or a label."""

    def count(self, metric: Metric, *labels: str, by: float = 1.0) -> None:
        """Increase a counter. `by=0` creates the series, so that an alert sees its first increase."""
        ...

    def set(self, metric: Metric, value: float, *labels: str) -> None:
        """Set a gauge."""
        ...

    def observe(self, metric: Metric, value: float, *labels: str) -> None:
        """Add a value to a histogram."""
        ...

    async def exposition(self) -> bytes:
        """The answer to a scraper, in Prometheus' text format."""
        ...
