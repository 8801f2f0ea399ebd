"""Metrics of a Ray replica, through Ray's own metrics: the agent of each node serves those of all its processes.

Ray keeps counters and gauges as Prometheus does. Of a histogram it keeps exact buckets, and a sum computed from the
buckets' middles: quantiles are exact, means are close. A gauge disappears when it was not set within two report
intervals. That suits a dead replica; a live one sets its gauges again every `REPEAT_S` seconds.
"""

from __future__ import annotations

import asyncio
import re
import threading
import time
from typing import Any

import httpx
import ray
from ray.util.metrics import Counter, Gauge, Histogram

from services.adapters.label_limits import LabelLimits
from services.ports.metric_catalogue import METRICS, Metric

REPLICA = "replica"  # one more label: the gauges of two replicas are two series
SCRAPE_TIMEOUT_S = 5.0
REPEAT_S = 0.5
STREAMCHAT_LINE = re.compile(r"(# (?:HELP|TYPE) )?ray_(streamchat_\w+?)(_bucket|_sum|_count)?([ {].*)")


class RayRecorder:
    """The metrics of one service, in one of its replicas."""

    def __init__(self, service: str, replica: str) -> None:
        self._limits = LabelLimits()
        self._metrics = {m.name: create_metric(m, replica) for m in METRICS.values() if m.service == service}
        for metric in METRICS.values():
            if metric.service == service and metric.kind == "counter":
                for labels in metric.zero_labels or [()] * (not metric.labels):
                    self.count(metric, *labels, by=0.0)
        self._gauges: dict[tuple[str, tuple[str, ...]], tuple[float, dict[str, str]]] = {}
        threading.Thread(target=self._repeat_gauges, name="gauges", daemon=True).start()

    def count(self, metric: Metric, *labels: str, by: float = 1.0) -> None:
        """See MetricsRecorder."""
        self._metrics[metric.name]._record(by, self._tags(metric, labels))  # `inc` itself refuses 0

    def set(self, metric: Metric, value: float, *labels: str) -> None:
        """See MetricsRecorder."""
        tags = self._tags(metric, labels)
        self._gauges[metric.name, tuple(tags.values())] = value, tags
        self._metrics[metric.name].set(value, tags)

    def observe(self, metric: Metric, value: float, *labels: str) -> None:
        """See MetricsRecorder."""
        self._metrics[metric.name].observe(value, self._tags(metric, labels))

    async def exposition(self) -> bytes:
        """The metrics of all services on all nodes: each replica of the gateway serves the same."""
        nodes = await asyncio.to_thread(ray.nodes)
        urls = [
            f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
            for node in nodes
            if node["Alive"]
        ]
        async with httpx.AsyncClient(timeout=SCRAPE_TIMEOUT_S, trust_env=False) as client:
            responses = await asyncio.gather(*(client.get(url) for url in urls), return_exceptions=True)
        texts = [response.text for response in responses if isinstance(response, httpx.Response)]
        if not texts:  # one dying node must not hide the others
            raise ConnectionError(f"no node's metrics can be read: {responses[0]!r}")
        return select_streamchat(texts).encode()

    def _repeat_gauges(self) -> None:
        while True:
            time.sleep(REPEAT_S)
            for (name, _), (value, tags) in list(self._gauges.items()):
                self._metrics[name].set(value, tags)

    def _tags(self, metric: Metric, labels: tuple[str, ...]) -> dict[str, str]:
        return dict(zip(metric.labels, self._limits.apply(metric, labels), strict=True))


def create_metric(metric: Metric, replica: str) -> Any:
    """The metric in Ray's metrics."""
    keys = (*metric.labels, REPLICA)
    if metric.kind == "histogram":
        created = Histogram(metric.name, metric.description, list(metric.buckets), keys)
    else:
        created = {"counter": Counter, "gauge": Gauge}[metric.kind](metric.name, metric.description, keys)
    return created.set_default_tags({REPLICA: replica})


def select_streamchat(texts: list[str]) -> str:
    """StreamChat's metrics from the nodes' agents, without the prefix `ray_`, grouped by name."""
    # By name, each line once and in order: every node repeats the help.
    lines_by_name: dict[str, dict[str, None]] = {}
    for text in texts:
        for line in text.splitlines():
            if found := STREAMCHAT_LINE.fullmatch(line):
                comment, name, part, rest = found.groups(default="")
                lines_by_name.setdefault(name, {})[f"{comment}{name}{part}{rest}"] = None
    return "".join(f"{line}\n" for lines in lines_by_name.values() for line in lines)
