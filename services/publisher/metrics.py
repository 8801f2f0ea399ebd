"""What a publisher tells Prometheus: it is no Ray replica, so it answers scrapers itself."""

from __future__ import annotations

from dataclasses import replace

from prometheus_client import start_http_server

from services.adapters.prometheus_recorder import PrometheusRecorder
from services.ports.metric_catalogue import PUBLISH_DROPPED, PUBLISHED, PUBLISHED_BYTES
from services.publisher.progress import Progress


class PublishMetrics:
    """Of one camera, at `http://ADDRESS/metrics` (HOST:PORT). ValueError for no address, OSError for one in use."""

    def __init__(self, camera: str, address: str) -> None:
        host, _, port = address.rpartition(":")
        if not host or not port.isdigit() or not 0 < int(port) < 2**16:
            raise ValueError(f"--metrics: got {address!r}, wanted HOST:PORT")
        self._camera = camera
        self._recorder = PrometheusRecorder("publish")
        self._before = Progress()
        self.tell(self._before)
        self._server, _ = start_http_server(int(port), host, registry=self._recorder.registry)

    def tell(self, now: Progress) -> None:
        """The progress since the last call."""
        before, self._before = self._before, replace(now)
        count = self._recorder.count
        count(PUBLISHED, self._camera, by=now.num_frames - before.num_frames)
        count(PUBLISHED_BYTES, self._camera, by=now.num_bytes - before.num_bytes)
        count(PUBLISH_DROPPED, self._camera, "refused", by=now.num_refused - before.num_refused)
        count(PUBLISH_DROPPED, self._camera, "dropped", by=now.num_dropped - before.num_dropped)

    def close(self) -> None:
        """Answer no more."""
        self._server.shutdown()
        self._server.server_close()
