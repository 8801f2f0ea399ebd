"""A real Prometheus that scrapes the targets of a test."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import httpx
import yaml

from helm.boards import pictures
from services.local.embedded_servers import HOST, free_port
from services.processes.child_processes import end_process, spawn
from tests.helm.queries import dashboards, panels
from tests.live.clients.live_stack import eventually
from tests.prometheus import PROMETHEUS

WITHOUT_RAYS_PREFIX = {  # as docs/metrics.md describes it
    "source_labels": ["__name__"],
    "regex": "ray_(streamchat_.+)",
    "target_label": "__name__",
    "replacement": "$1",
}


class PrometheusServer:
    """Debian's Prometheus; `scrape` adds targets (HOST:PORT)."""

    def __init__(self, folder: Path) -> None:
        self._targets = folder / "targets.json"
        self._targets.write_text("[]")
        config = {
            "global": {"scrape_interval": "2s", "scrape_timeout": "2s"},
            "scrape_configs": [
                {
                    "job_name": "streamchat",
                    "file_sd_configs": [{"files": [str(self._targets)], "refresh_interval": "1s"}],
                    "metric_relabel_configs": [WITHOUT_RAYS_PREFIX],
                }
            ],
        }
        (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
        self.url = f"http://{HOST}:{free_port()}"
        self._output = folder / "output.txt"
        options = {
            "config.file": folder / "prometheus.yml",
            "storage.tsdb.path": folder / "data",
            "web.listen-address": self.url.removeprefix("http://"),
            "log.level": "warn",
        }
        command = [PROMETHEUS, *(f"--{name}={value}" for name, value in options.items())]
        with self._output.open("wb") as output:
            self._process = spawn(command, output=output)
        eventually(self._ready, "Prometheus does not start")

    def scrape(self, *targets: str) -> None:
        """Scrape these targets from now on, and wait until each has been scraped."""
        self._targets.write_text(json.dumps([{"targets": [target]} for target in targets]))
        eventually(lambda: self.values("sum(up)") == [len(targets)], f"not all of {targets} are scraped")

    def values(self, query: str) -> list[float]:
        """The query's present values, without NaN and infinity."""
        answer = httpx.get(f"{self.url}/api/v1/query", params={"query": query}, trust_env=False, timeout=30)
        found: dict[str, Any] = answer.raise_for_status().json()["data"]
        values = [float(series["value"][1]) for series in found["result"]]
        return [value for value in values if math.isfinite(value)]

    def close(self) -> None:
        """Stop it."""
        end_process(self._process)

    def _ready(self) -> bool:
        if self._process.poll() is not None:
            raise AssertionError(self._output.read_text())
        try:
            return httpx.get(f"{self.url}/-/ready", trust_env=False).status_code == 200
        except httpx.TransportError:
            return False


def check_picture(name: str, prometheus: PrometheusServer, path: Path) -> None:
    """Draw a dashboard, and check that each of its panels shows data."""
    board = dashboards()[name]
    figure = pictures.drawn(board, prometheus.url, 60.0)
    figure.savefig(path)
    empty = [axis.get_title(loc="left") for axis in figure.axes[: len(panels(board))] if not axis.lines]
    assert empty == []
    assert path.stat().st_size > 20_000
