"""Labels stay bounded."""

from __future__ import annotations

from services.gateway_metrics import MAX_ERROR_CODES, GatewayMetrics


def test_error_codes_are_bounded() -> None:
    metrics = GatewayMetrics()
    for number in range(MAX_ERROR_CODES + 5):
        metrics.failed(f"code_{number}")
    metrics.failed("code_0")
    text = metrics.exposition().decode()
    assert 'streamchat_request_errors_total{code="code_0"} 2.0' in text
    assert 'streamchat_request_errors_total{code="other"} 5.0' in text
    assert text.count("streamchat_request_errors_total{") == MAX_ERROR_CODES + 1


def test_two_gateways_count_apart() -> None:
    one, other = GatewayMetrics(), GatewayMetrics()
    one.tokens.inc(3)
    assert b"streamchat_generation_tokens_total 3.0" in one.exposition()
    assert b"streamchat_generation_tokens_total 0.0" in other.exposition()
