"""The names keep to Prometheus' rules."""

from __future__ import annotations

import re

import pytest

from model.config import PROJECT_ROOT
from services.ports.metric_catalogue import METRICS, Metric


@pytest.mark.parametrize("metric", METRICS.values(), ids=lambda metric: metric.name)
def test_a_name_says_what_it_is(metric: Metric) -> None:
    assert re.fullmatch(r"streamchat(_[a-z0-9]+)+", metric.name)
    assert metric.name.endswith("_total") == (metric.kind == "counter")
    assert bool(metric.buckets) == (metric.kind == "histogram")
    assert list(metric.buckets) == sorted(set(metric.buckets))
    assert len(metric.description) > 10
    assert not any(word in metric.name.split("_") for word in ("ms", "kb", "mb", "percent", "minutes"))
    assert all(len(labels) == len(metric.labels) for labels in metric.zero_labels)


def test_times_are_seconds() -> None:
    timed = [metric.name for metric in METRICS.values() if metric.buckets and max(metric.buckets) < 256]
    assert [name for name in timed if not name.endswith("_seconds")] == []


def test_every_name_is_described() -> None:
    described = (PROJECT_ROOT / "docs" / "metrics.md").read_text().splitlines()
    rows = [
        line for line in described if line.startswith("| `streamchat_") and "streamchat_train_" not in line
    ]
    assert rows == [
        f"| `{metric.name}` | {metric.kind} | {', '.join(metric.labels) or '–'} | {metric.description} |"
        for metric in METRICS.values()
    ]
