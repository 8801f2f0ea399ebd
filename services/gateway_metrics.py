"""What the gateway counts and times, in a registry of its own (several gateways can live in one process)."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
FRAME_AGE_BUCKETS_S = (0.025, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.75, 1.0, 2.0, 5.0, 10.0, 30.0)
TOKEN_BUCKETS_S = (0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0, 2.5, 5.0, 10.0)
REQUEST_BUCKETS_S = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0)
MAX_ERROR_CODES = 64  # a label must stay bounded: codes after these are counted as "other"


class GatewayMetrics:
    """Names follow Prometheus' practice; docs are the metrics' own help texts."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.frame_age_s = Histogram(
            "streamchat_frame_age_at_decode_seconds",
            "Age of the newest frame a token could see, when the token was made",
            buckets=FRAME_AGE_BUCKETS_S,
            registry=self.registry,
        )
        self.first_token_s = Histogram(
            "streamchat_time_to_first_token_seconds",
            "From the question's arrival to its first token",
            buckets=TOKEN_BUCKETS_S,
            registry=self.registry,
        )
        self.inter_token_s = Histogram(
            "streamchat_inter_token_latency_seconds",
            "Between two tokens of an answer, as the engine made them",
            buckets=TOKEN_BUCKETS_S,
            registry=self.registry,
        )
        self.request_s = Histogram(
            "streamchat_e2e_request_latency_seconds",
            "From the question's arrival to the answer's end",
            buckets=REQUEST_BUCKETS_S,
            registry=self.registry,
        )
        self.running = Gauge("streamchat_requests_running", "Answers being made now", registry=self.registry)
        self.errors = Counter(
            "streamchat_request_errors", "Requests that failed", ["code"], registry=self.registry
        )
        self.tokens = Counter("streamchat_generation_tokens", "Tokens made", registry=self.registry)
        self.redispatches = Counter(
            "streamchat_redispatches", "Answers taken up by another decoder", registry=self.registry
        )
        self.viewers = Gauge("streamchat_picture_viewers", "Open picture streams", registry=self.registry)
        self.websockets = Gauge(
            "streamchat_websocket_connections", "Open realtime sessions", registry=self.registry
        )
        self._codes: set[str] = set()

    def failed(self, code: str) -> None:
        """Count a failed request under its error code."""
        if code not in self._codes and len(self._codes) >= MAX_ERROR_CODES:
            code = "other"
        self._codes.add(code)
        self.errors.labels(code).inc()

    def exposition(self) -> bytes:
        """All of it in Prometheus' text format."""
        return generate_latest(self.registry)
