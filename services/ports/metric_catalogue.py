"""Every metric of the services: its name, kind, labels and meaning.

Units: seconds, bytes, ratios from 0 to 1. Counters end in `_total`; a histogram has the series `_bucket`, `_sum` and
`_count`. Ray exports them with the prefix `ray_`; the gateway's `/metrics` serves them under the names below
(docs/metrics.md). Training has its own list (`training/monitoring/metrics.py`).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Literal

AGES_S = (0.025, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.75, 1.0, 2.0, 5.0, 10.0, 30.0)
TOKEN_S = (0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0, 2.5, 5.0, 10.0)
REQUEST_S = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0)
WORK_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)
SERVER_FAULTS = (
    *((code, "500") for code in ("internal_error", "decoder_error", "decoder_confused")),
    *((code, "503") for code in ("decoder_lost", "store_lost", "encoder_lost", "clip_player_lost")),
)
DEAD_LETTER_REASONS = (
    *("past", "future", "not_allowed", "too_many_cameras", "damaged"),
    *("access unit", "timestamp", "codec", "camera id (key)"),
    *(f"header {name}" for name in ("codec", "keyframe", "pts", "time_base", "seq")),
)
SIZES = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0)

Kind = Literal["counter", "gauge", "histogram"]


@dataclass(frozen=True, slots=True)
class Metric:
    """A metric of one service."""

    service: str
    kind: Kind
    name: str
    description: str
    labels: tuple[str, ...]
    buckets: tuple[float, ...]
    zero_labels: tuple[
        tuple[str, ...], ...
    ]  # series that start at 0, so that an alert sees the first increase


METRICS: dict[str, Metric] = {}  # by name


def metric(
    service: str,
    kind: Kind,
    name: str,
    description: str,
    *labels: str,
    buckets: tuple[float, ...] = (),
    zero_labels: tuple[tuple[str, ...], ...] = (),
) -> Metric:
    """Create a metric and add it to METRICS."""
    created = METRICS[name] = Metric(service, kind, name, description, labels, buckets, zero_labels)
    return created


# -- gateway: questions and answers

gateway = partial(metric, "gateway")
FIRST_TOKEN = gateway(
    "histogram",
    "streamchat_time_to_first_token_seconds",
    "From the question's arrival at the gateway to its first token",
    buckets=TOKEN_S,
)
INTER_TOKEN = gateway(
    "histogram",
    "streamchat_inter_token_latency_seconds",
    "Between two tokens of an answer, as the engine made them",
    buckets=TOKEN_S,
)
REQUEST = gateway(
    "histogram",
    "streamchat_e2e_request_latency_seconds",
    "From the question's arrival to the answer's end",
    buckets=REQUEST_S,
)
REQUESTS = gateway("counter", "streamchat_requests_total", "Questions handed to a decoder")
REQUESTS_RUNNING = gateway("gauge", "streamchat_requests_running", "Answers being made now")
REQUESTS_WAITING = gateway(
    "gauge", "streamchat_requests_waiting", "Questions that no decoder has taken up yet"
)
REQUEST_ERRORS = gateway(
    "counter",
    "streamchat_request_errors_total",
    "Requests that failed, by the API's error code and the HTTP status that goes with it",
    "code",
    "status",
    zero_labels=SERVER_FAULTS,
)
PROMPT_TOKENS = gateway("counter", "streamchat_prompt_tokens_total", "Tokens of questions")
TOKENS = gateway("counter", "streamchat_generation_tokens_total", "Tokens of answers")
REDISPATCHES = gateway("counter", "streamchat_redispatches_total", "Answers taken up by another decoder")
VIEWERS = gateway("gauge", "streamchat_picture_viewers", "Open picture streams")
WEBSOCKETS = gateway("gauge", "streamchat_websocket_connections", "Open realtime sessions")
AUTH_FAILURES = gateway(
    "counter",
    "streamchat_auth_failures_total",
    "Requests refused for who sent them (401, 403), by error code",
    "reason",
    zero_labels=(("no_api_key",), ("invalid_api_key",)),
)
RATE_LIMIT_FALLBACKS = gateway(
    "counter",
    "streamchat_rate_limit_fallbacks_total",
    "Requests whose rate limit one gateway counted alone, because Redis could not be reached",
)
BUILD_INFO = gateway("gauge", "streamchat_build_info", "1, for what is served", "version", "model")

# -- FrameFifo: from Kafka to Redis

frame_fifo = partial(metric, "frame_fifo")
CAMERA_UP = frame_fifo(
    "gauge", "streamchat_camera_up", "1 while packets of the camera come, else 0", "camera"
)
NEWEST_FRAME = frame_fifo(
    "gauge",
    "streamchat_camera_newest_frame_timestamp_seconds",
    "When the camera's newest frame in the FIFO was captured, in seconds since 1970",
    "camera",
)
CAPTURE_SKEW = frame_fifo(
    "gauge",
    "streamchat_camera_capture_skew_seconds",
    "Capture time of the newest packet less our clock when it was read: above 0 is a camera's clock ahead of ours",
    "camera",
)
PACKETS_READ = frame_fifo(
    "counter", "streamchat_packets_read_total", "Encoded access units read from Kafka", "camera"
)
PACKETS_SKIPPED = frame_fifo(
    "counter",
    "streamchat_packets_skipped_total",
    "Access units read and not decoded, or in vain",
    "camera",
    "reason",
)
DEAD_LETTERS = frame_fifo(
    "counter",
    "streamchat_dead_letter_total",
    "Records that could not be used, by what was wrong",
    "reason",
    zero_labels=tuple((reason,) for reason in DEAD_LETTER_REASONS),
)
LAG = frame_fifo(
    "gauge", "streamchat_kafka_consumer_lag_messages", "Records written to Kafka that were not read yet"
)
FRAMES_INGESTED = frame_fifo(
    "counter", "streamchat_frames_ingested_total", "Frames encoded and put into the FIFO", "camera"
)
FRAMES_DROPPED = frame_fifo(
    "counter",
    "streamchat_frames_dropped_total",
    "Frames lost, by stage: read (late), encode (overtaken by newer, encoder_failed), store (store_lost, replayed)",
    "camera",
    "stage",
    "reason",
)
FRAME_AGE_AT_STORE = frame_fifo(
    "histogram",
    "streamchat_frame_age_at_store_seconds",
    "Age of a frame when it was put into the FIFO",
    buckets=AGES_S,
)
FIFO_ENTRIES = frame_fifo("gauge", "streamchat_fifo_entries", "Frames in the camera's FIFO", "camera")
FIFO_CAPACITY = frame_fifo("gauge", "streamchat_fifo_capacity", "Frames that a FIFO keeps")
FIFO_BYTES = frame_fifo("gauge", "streamchat_fifo_bytes", "Memory that Redis uses for all FIFOs")
FIFO_LIMIT_BYTES = frame_fifo(
    "gauge", "streamchat_fifo_limit_bytes", "Memory that Redis may use; 0: no limit"
)

# -- VisionEncoder

vision_encoder = partial(metric, "vision_encoder")
ENCODER_BATCH = vision_encoder(
    "histogram", "streamchat_encoder_batch_size", "Pictures encoded together", buckets=SIZES
)
FRAME_ENCODE = vision_encoder(
    "histogram",
    "streamchat_frame_encode_seconds",
    "One pass of the vision encoder, of a batch",
    buckets=WORK_S,
)

ENCODER_BUSY = vision_encoder(
    "counter", "streamchat_encoder_busy_seconds_total", "Time the vision encoder spent in passes"
)

# -- LLMDecoder: the engine

llm_decoder = partial(metric, "llm_decoder")
FRAME_AGE = llm_decoder(
    "histogram",
    "streamchat_frame_age_at_decode_seconds",
    "From the capture of the newest frame a token could see to the making of that token, of dialogs that look live",
    "camera",
    buckets=AGES_S,
)
DIALOGS = llm_decoder("gauge", "streamchat_dialogs_running", "Dialogs the engine speaks in now", "camera")
DIALOG_PLACES = llm_decoder("gauge", "streamchat_dialog_places", "Dialogs that the engine has room for")
REFRESHES = llm_decoder(
    "counter",
    "streamchat_visual_refresh_total",
    "Frames taken into the engine's rings: times it looked again",
)
STEP = llm_decoder(
    "histogram", "streamchat_step_seconds", "One decoding step of all dialogs that are due", buckets=WORK_S
)
BUSY = llm_decoder("counter", "streamchat_engine_busy_seconds_total", "Time the engine spent in steps")
STEP_DIALOGS = llm_decoder(
    "histogram", "streamchat_step_dialogs", "Dialogs in a decoding step", buckets=SIZES
)
CACHE_BYTES = llm_decoder(
    "gauge", "streamchat_cache_bytes", "Memory of the engine's caches: kind frames (rings) or text", "kind"
)
CACHE_EACH_BYTES = llm_decoder(
    "gauge",
    "streamchat_cache_each_bytes",
    "Memory of one: kind camera (its frames) or dialog (the longest one's text, those at rest included)",
    "kind",
)
CACHE_LIMIT_BYTES = llm_decoder(
    "gauge", "streamchat_cache_limit_bytes", "Memory that the engine's caches may take together"
)
DEVICE_BYTES = llm_decoder(
    "gauge",
    "streamchat_device_memory_bytes",
    "Memory in use where the decoder computes: of the whole GPU, or of its process",
    "device",
)
DEVICE_LIMIT_BYTES = llm_decoder(
    "gauge",
    "streamchat_device_memory_limit_bytes",
    "Memory that there is where the decoder computes",
    "device",
)

# -- `streamchat publish`, a process that is no Ray replica

publish = partial(metric, "publish")
PUBLISHED = publish("counter", "streamchat_publish_frames_total", "Access units sent to Kafka", "camera")
PUBLISHED_BYTES = publish(
    "counter", "streamchat_publish_bytes_total", "Bytes of video sent to Kafka", "camera"
)
PUBLISH_DROPPED = publish(
    "counter",
    "streamchat_publish_dropped_total",
    "Access units not sent: refused (readers would refuse them) or dropped (Kafka could not take them in time)",
    "camera",
    "reason",
)
