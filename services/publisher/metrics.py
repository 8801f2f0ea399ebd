"""The metrics of `streamchat publish`. It is not a Ray replica, so it serves them to Prometheus itself."""

from __future__ import annotations

from dataclasses import replace

from prometheus_client import start_http_server

from services.adapters.prometheus_recorder import PrometheusRecorder
from services.ports.metric_catalogue import PUBLISH_DROPPED, PUBLISHED, PUBLISHED_BYTES
from services.publisher.progress import Progress


class PublishMetrics:
    """One camera's metrics at `http://ADDRESS/metrics`.

    ValueError for an address that is not HOST:PORT, OSError for one in use.
    """

    def __init__(self, camera: str, address: str) -> None:
        host, _, port = address.rpartition(":")
        if not host or not port.isdigit() or not 0 < int(port) < 2**16:
            raise ValueError(f"--metrics: got {address!r}, wanted HOST:PORT")
        self._camera = camera
        self._recorder = PrometheusRecorder("publish")
        self._last = Progress()
        self.update(self._last)
        self._server, _ = start_http_server(int(port), host, registry=self._recorder.registry)

    def update(self, now: Progress) -> None:
        """Count the progress since the last call."""
        last, self._last = self._last, replace(now)
        count = self._recorder.count
        count(PUBLISHED, self._camera, by=now.num_frames - last.num_frames)
        count(PUBLISHED_BYTES, self._camera, by=now.num_bytes - last.num_bytes)
        count(PUBLISH_DROPPED, self._camera, "refused", by=now.num_refused - last.num_refused)
        count(PUBLISH_DROPPED, self._camera, "dropped", by=now.num_dropped - last.num_dropped)

    def close(self) -> None:
        """Stop serving."""
        self._server.shutdown()
        self._server.server_close()
