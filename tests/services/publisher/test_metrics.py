"""Prometheus sees what a publisher has sent."""

from __future__ import annotations

import httpx
import pytest

from services.local.embedded_servers import HOST, free_port
from services.publisher.metrics import PublishMetrics
from services.publisher.progress import Progress


def test_each_packet_is_counted_once() -> None:
    address = f"{HOST}:{free_port()}"
    metrics = PublishMetrics("door", address)
    try:
        progress = Progress(num_frames=10, num_bytes=5000)
        metrics.update(progress)
        progress.num_frames, progress.num_dropped, progress.num_refused = 12, 3, 1
        metrics.update(progress)
        text = httpx.get(f"http://{address}/metrics", trust_env=False).text
    finally:
        metrics.close()
    assert 'streamchat_publish_frames_total{camera="door"} 12.0' in text
    assert 'streamchat_publish_bytes_total{camera="door"} 5000.0' in text
    assert 'streamchat_publish_dropped_total{camera="door",reason="dropped"} 3.0' in text
    assert 'streamchat_publish_dropped_total{camera="door",reason="refused"} 1.0' in text


@pytest.mark.parametrize("address", ["9464", "127.0.0.1:", "127.0.0.1:99999", "127.0.0.1:http"])
def test_no_address(address: str) -> None:
    with pytest.raises(ValueError, match="wanted HOST:PORT"):
        PublishMetrics("door", address)
