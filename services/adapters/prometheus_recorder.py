"""Metrics in a Prometheus registry, for processes that are no Ray replica, and for tests."""

from __future__ import annotations

from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from services.adapters.label_limits import LabelLimits
from services.ports.metric_catalogue import METRICS, Metric


class PrometheusRecorder:
    """The metrics of one service, in a registry of its own: several gateways can run in one process."""

    def __init__(self, service: str) -> None:
        self.registry = CollectorRegistry()
        self._limits = LabelLimits()
        self._metrics = {m.name: self._create(m) for m in METRICS.values() if m.service == service}

    def count(self, metric: Metric, *labels: str, by: float = 1.0) -> None:
        """See MetricsRecorder."""
        self._series(metric, labels).inc(by)

    def set(self, metric: Metric, value: float, *labels: str) -> None:
        """See MetricsRecorder."""
        self._series(metric, labels).set(value)

    def observe(self, metric: Metric, value: float, *labels: str) -> None:
        """See MetricsRecorder."""
        self._series(metric, labels).observe(value)

    async def exposition(self) -> bytes:
        """See MetricsRecorder."""
        return generate_latest(self.registry)

    def _series(self, metric: Metric, labels: tuple[str, ...]) -> Any:
        created = self._metrics[metric.name]
        return created.labels(*self._limits.apply(metric, labels)) if labels else created

    def _create(self, metric: Metric) -> Counter | Gauge | Histogram:
        described: Any = (metric.name, metric.description, metric.labels)
        if metric.kind == "histogram":
            return Histogram(*described, buckets=metric.buckets, registry=self.registry)
        created = {"counter": Counter, "gauge": Gauge}[metric.kind](*described, registry=self.registry)
        for labels in metric.zero_labels:
            created.labels(*labels)
        return created
