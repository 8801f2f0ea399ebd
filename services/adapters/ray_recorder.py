"""Measurements of a Ray replica, through Ray's own metrics: each node's agent serves what all its processes count.

Ray knows counters and gauges as Prometheus does. Of a histogram it keeps the buckets exactly and the sum from the
buckets' middles, so quantiles are what they are and means are close. A gauge that was not set within two of its report
intervals is gone, which is right for a dead replica's: those of a live one are set again all the time.
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

from services.adapters.metric_catalogue import METRICS, Metric
from services.ports.recorder import Bounds

REPLICA = "replica"  # a label beside those of the catalogue: two replicas' gauges are two series
SCRAPE_TIMEOUT_S = 5.0
REPEAT_S = 0.5
OURS = re.compile(r"(# (?:HELP|TYPE) )?ray_(streamchat_\w+?)(_bucket|_sum|_count)?([ {].*)")


class RayMeters:
    """The metrics of one service, in one of its replicas."""

    def __init__(self, service: str, replica: str) -> None:
        self._bounds = Bounds()
        self._made = {m.name: make(m, replica) for m in METRICS.values() if m.service == service}
        for metric in METRICS.values():
            if metric.service == service and metric.kind == "counter":
                for labels in metric.first or [()] * (not metric.labels):
                    self.count(metric, *labels, by=0.0)
        self._levels: dict[tuple[str, tuple[str, ...]], tuple[float, dict[str, str]]] = {}
        threading.Thread(target=self._repeat, name="gauges", daemon=True).start()

    def count(self, metric: Metric, *labels: str, by: float = 1.0) -> None:
        """See Meters."""
        self._made[metric.name]._record(by, self._tags(metric, labels))  # `inc` itself refuses 0

    def set(self, metric: Metric, value: float, *labels: str) -> None:
        """See Meters."""
        tags = self._tags(metric, labels)
        self._levels[metric.name, tuple(tags.values())] = value, tags
        self._made[metric.name].set(value, tags)

    def observe(self, metric: Metric, value: float, *labels: str) -> None:
        """See Meters."""
        self._made[metric.name].observe(value, self._tags(metric, labels))

    async def exposition(self) -> bytes:
        """All services' metrics, of all nodes: any replica of the gateway tells the same."""
        nodes = await asyncio.to_thread(ray.nodes)
        urls = [
            f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
            for node in nodes
            if node["Alive"]
        ]
        async with httpx.AsyncClient(timeout=SCRAPE_TIMEOUT_S, trust_env=False) as client:
            asked = await asyncio.gather(*(client.get(url) for url in urls), return_exceptions=True)
        answers = [answer.text for answer in asked if isinstance(answer, httpx.Response)]
        if not answers:  # a node that is just dying must not hide the others
            raise ConnectionError(f"no node's metrics can be read: {asked[0]!r}")
        return ours(answers).encode()

    def _repeat(self) -> None:
        while True:
            time.sleep(REPEAT_S)
            for (name, _), (value, tags) in list(self._levels.items()):
                self._made[name].set(value, tags)

    def _tags(self, metric: Metric, labels: tuple[str, ...]) -> dict[str, str]:
        return dict(zip(metric.labels, self._bounds.within(metric, labels), strict=True))


def make(metric: Metric, replica: str) -> Any:
    """The metric as Ray's."""
    keys = (*metric.labels, REPLICA)
    if metric.kind == "histogram":
        made = Histogram(metric.name, metric.about, list(metric.buckets), keys)
    else:
        made = {"counter": Counter, "gauge": Gauge}[metric.kind](metric.name, metric.about, keys)
    return made.set_default_tags({REPLICA: replica})


def ours(texts: list[str]) -> str:
    """StreamChat's own out of what the nodes' agents serve, without `ray_`, each name's lines together."""
    families: dict[
        str, dict[str, None]
    ] = {}  # lines by name, in order and each once: every node tells the help
    for text in texts:
        for line in text.splitlines():
            if found := OURS.fullmatch(line):
                comment, name, part, rest = found.groups(default="")
                families.setdefault(name, {})[f"{comment}{name}{part}{rest}"] = None
    return "".join(f"{line}\n" for lines in families.values() for line in lines)
