"""Where measurements go: in a Ray replica to Ray's own metrics (`ray_recorder.py`), elsewhere to a registry.

A service says `meters.count(FRAMES_DROPPED, camera, "encode", "overtaken")`; the names are in the metric catalogue.
"""

from __future__ import annotations

from typing import Any, Protocol

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from services.adapters.metric_catalogue import METRICS, Metric

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
CLIP = "(clip)"  # in place of the camera where a clip came with the question
OTHER = "(other)"
MAX_CAMERAS = 1024
MAX_VALUES = 64  # of any other label


class Meters(Protocol):
    """Takes measurements, from any thread, and never fails for what it is told."""

    def count(self, metric: Metric, *labels: str, by: float = 1.0) -> None:
        """Something happened `by` times; 0 makes the series, so that its first rise is one."""
        ...

    def set(self, metric: Metric, value: float, *labels: str) -> None:
        """A gauge stands at `value`."""
        ...

    def observe(self, metric: Metric, value: float, *labels: str) -> None:
        """A histogram gets one more value."""
        ...

    async def exposition(self) -> bytes:
        """What a scraper gets, in Prometheus' text format."""
        ...


class Bounds:
    """Keeps the number of values of each label bounded."""

    def __init__(self) -> None:
        self._values: dict[str, set[str]] = {}

    def within(self, metric: Metric, labels: tuple[str, ...]) -> tuple[str, ...]:
        """The labels, with OTHER in place of values that are too many: else whoever can choose a camera's name or an
        error's code could fill a Prometheus.
        """
        assert len(labels) == len(metric.labels), metric.name
        return tuple(map(self._bounded, metric.labels, labels))

    def _bounded(self, name: str, value: str) -> str:
        known = self._values.setdefault(name, set[str]())
        if value in known:
            return value
        if len(known) >= (MAX_CAMERAS if name == "camera" else MAX_VALUES):
            return OTHER
        known.add(value)
        return value


class PrometheusMeters:
    """The metrics of one service, in a registry of its own: several gateways can live in one process."""

    def __init__(self, service: str) -> None:
        self.registry = CollectorRegistry()
        self._bounds = Bounds()
        self._made = {m.name: self._make(m) for m in METRICS.values() if m.service == service}

    def count(self, metric: Metric, *labels: str, by: float = 1.0) -> None:
        """See Meters."""
        self._of(metric, labels).inc(by)

    def set(self, metric: Metric, value: float, *labels: str) -> None:
        """See Meters."""
        self._of(metric, labels).set(value)

    def observe(self, metric: Metric, value: float, *labels: str) -> None:
        """See Meters."""
        self._of(metric, labels).observe(value)

    async def exposition(self) -> bytes:
        """See Meters."""
        return generate_latest(self.registry)

    def _of(self, metric: Metric, labels: tuple[str, ...]) -> Any:
        made = self._made[metric.name]
        return made.labels(*self._bounds.within(metric, labels)) if labels else made

    def _make(self, metric: Metric) -> Counter | Gauge | Histogram:
        named: Any = (metric.name, metric.about, metric.labels)
        if metric.kind == "histogram":
            return Histogram(*named, buckets=metric.buckets, registry=self.registry)
        made = {"counter": Counter, "gauge": Gauge}[metric.kind](*named, registry=self.registry)
        for labels in metric.first:
            made.labels(*labels)
        return made
