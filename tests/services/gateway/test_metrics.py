"""Levels rise and fall, and failures are told apart."""

from __future__ import annotations

import pytest

from services.adapters.label_limits import MAX_VALUES
from services.gateway.metrics import GatewayMetrics
from services.ports.metric_catalogue import SERVER_FAULTS


async def test_error_codes_are_bounded() -> None:
    metrics = GatewayMetrics()
    for number in range(MAX_VALUES + 5):
        metrics.record_error(f"code_{number}", 400)
    metrics.record_error("code_0", 400)
    text = (await metrics.recorder.exposition()).decode()
    assert 'streamchat_request_errors_total{code="code_0",status="400"} 2.0' in text
    assert 'streamchat_request_errors_total{code="(other)",status="400"} 5.0' in text
    assert text.count("streamchat_request_errors_total{") == MAX_VALUES + 1 + len(SERVER_FAULTS)


async def test_two_gateways_count_apart() -> None:
    one, other = GatewayMetrics(), GatewayMetrics()
    one.running.add(3)
    assert b"streamchat_requests_running 3.0" in await one.recorder.exposition()
    assert b"streamchat_requests_running 0.0" in await other.recorder.exposition()


async def test_a_level_falls_again_whatever_happens() -> None:
    metrics = GatewayMetrics()

    async def two_sessions() -> None:
        with metrics.websockets, metrics.websockets:
            assert b"streamchat_websocket_connections 2.0" in await metrics.recorder.exposition()
            raise ValueError("gone")

    with pytest.raises(ValueError, match="gone"):
        await two_sessions()
    assert b"streamchat_websocket_connections 0.0" in await metrics.recorder.exposition()


async def test_whom_we_refuse_is_counted() -> None:
    metrics = GatewayMetrics()
    for code, status in (("invalid_api_key", 401), ("not_your_camera", 403), ("unknown_camera", 404)):
        metrics.record_error(code, status)
    text = (await metrics.recorder.exposition()).decode()
    assert 'streamchat_auth_failures_total{reason="invalid_api_key"} 1.0' in text
    assert 'streamchat_auth_failures_total{reason="not_your_camera"} 1.0' in text
    assert "unknown_camera" not in "".join(line for line in text.splitlines() if "auth_failures" in line)
