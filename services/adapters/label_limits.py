"""Limits the number of values of each metric label."""

from __future__ import annotations

from services.ports.metric_catalogue import Metric

OTHER = "(other)"  # in place of each value beyond the limit
MAX_CAMERAS = 1024
MAX_VALUES = 64  # of any other label


class LabelLimits:
    """Remembers the values of each label. Without a limit, anyone who chooses a camera's name could fill Prometheus."""

    def __init__(self) -> None:
        self._values: dict[str, set[str]] = {}

    def apply(self, metric: Metric, labels: tuple[str, ...]) -> tuple[str, ...]:
        """The labels of a metric, with OTHER in place of each value beyond the limit."""
        assert len(labels) == len(metric.labels), metric.name
        return tuple(map(self._limited, metric.labels, labels))

    def _limited(self, name: str, value: str) -> str:
        known = self._values.setdefault(name, set[str]())
        if value in known:
            return value
        if len(known) >= (MAX_CAMERAS if name == "camera" else MAX_VALUES):
            return OTHER
        known.add(value)
        return value
