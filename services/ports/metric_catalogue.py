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
    *("past", "future", "not_allowed", "too_many_cameras", "other_topic", "damaged", "too_large"),
    *("access unit", "timestamp", "codec", "camera id (key)", "camera name", "no key", "tombstone"),
    *(f"header {name}" for name in ("codec", "keyframe", "pts", "time_base", "seq", "rotation")),
)
SKIPPED_BATCH_REASONS = (
    *("codec", "checksum", "damaged", "too_large", "old_format"),
    *("overtaken", "remade", "unreadable"),
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
    "Time from the arrival of a question at the gateway to its first token",
    buckets=TOKEN_S,
)
INTER_TOKEN = gateway(
    "histogram",
    "streamchat_inter_token_latency_seconds",
    "Time between two tokens of an answer, as the engine generated them",
    buckets=TOKEN_S,
)
REQUEST = gateway(
    "histogram",
    "streamchat_e2e_request_latency_seconds",
    "Time from the arrival of a question to the end of its answer",
    buckets=REQUEST_S,
)
REQUESTS = gateway("counter", "streamchat_requests_total", "Questions sent to a decoder")
REQUESTS_RUNNING = gateway("gauge", "streamchat_requests_running", "Answers in progress")
REQUESTS_WAITING = gateway(
    "gauge", "streamchat_requests_waiting", "Questions that no decoder has accepted yet"
)
REQUEST_ERRORS = gateway(
    "counter",
    "streamchat_request_errors_total",
    "Failed requests, by the API's error code and its HTTP status",
    "code",
    "status",
    zero_labels=SERVER_FAULTS,
)
PROMPT_TOKENS = gateway("counter", "streamchat_prompt_tokens_total", "Prompt tokens")
TOKENS = gateway("counter", "streamchat_generation_tokens_total", "Generated tokens")
REDISPATCHES = gateway(
    "counter", "streamchat_redispatches_total", "Answers that continued on another decoder"
)
VIEWERS = gateway("gauge", "streamchat_picture_viewers", "Open picture streams")
WEBSOCKETS = gateway("gauge", "streamchat_websocket_connections", "Open realtime sessions")
AUTH_FAILURES = gateway(
    "counter",
    "streamchat_auth_failures_total",
    "Requests with a missing, invalid or insufficient API key (401, 403), by error code",
    "reason",
    zero_labels=(("no_api_key",), ("invalid_api_key",)),
)
RATE_LIMIT_FALLBACKS = gateway(
    "counter",
    "streamchat_rate_limit_fallbacks_total",
    "Requests whose rate limit one gateway counted alone, because Redis could not be reached",
)
BUILD_INFO = gateway(
    "gauge",
    "streamchat_build_info",
    "Always 1; the labels name the version and the model",
    "version",
    "model",
)

# -- FrameFifo: from Kafka to Redis

frame_fifo = partial(metric, "frame_fifo")
CAMERA_UP = frame_fifo(
    "gauge", "streamchat_camera_up", "1 while packets of the camera arrive, else 0", "camera"
)
NEWEST_FRAME = frame_fifo(
    "gauge",
    "streamchat_camera_newest_frame_timestamp_seconds",
    "Capture time of the camera's newest frame in the FIFO, in seconds since 1970",
    "camera",
)
CAPTURE_SKEW = frame_fifo(
    "gauge",
    "streamchat_camera_capture_skew_seconds",
    "Capture time of the newest packet minus our clock when it was read; above 0: the camera's clock is ahead",
    "camera",
)
CAPTURE_TIME_JUMPS = frame_fifo(
    "counter",
    "streamchat_camera_time_jumps_total",
    "Times that the camera's clock was set back or forward; its frames keep the time from before",
    "camera",
)
PACKETS_READ = frame_fifo(
    "counter", "streamchat_packets_read_total", "Encoded access units read from Kafka", "camera"
)
PACKETS_SKIPPED = frame_fifo(
    "counter",
    "streamchat_packets_skipped_total",
    "Access units that were read and not decoded, or were damaged",
    "camera",
    "reason",
)
DEAD_LETTERS = frame_fifo(
    "counter",
    "streamchat_dead_letter_total",
    "Records that could not be used, by reason",
    "reason",
    zero_labels=tuple((reason,) for reason in DEAD_LETTER_REASONS),
)
READER_STANDSTILL = frame_fifo(
    "gauge",
    "streamchat_reader_seconds_since_progress",
    "For how long records have waited in Kafka of which none was read, or Kafka has not answered; 0: reading gets on",
)
READER_LAG = frame_fifo(
    "gauge",
    "streamchat_reader_lag_messages",
    "Records of a partition in Kafka that were not read yet",
    "topic",
    "partition",
)
READER_FAILING = frame_fifo(
    "gauge", "streamchat_reader_failing_partitions", "Partitions that Kafka does not let us read"
)
READER_SKIPPED = frame_fifo(
    "counter",
    "streamchat_reader_batches_skipped_total",
    "Record batches that could not be read, by reason: codec, checksum, damaged, too_large (decompressed), old_format; "
    "and places where reading went on elsewhere: overtaken (by retention), remade (the topic), unreadable",
    "reason",
    zero_labels=tuple((reason,) for reason in SKIPPED_BATCH_REASONS),
)
READER_REBUILDS = frame_fifo(
    "counter",
    "streamchat_reader_rebuilds_total",
    "New connections to Kafka because reading stood still",
)
LAG = frame_fifo("gauge", "streamchat_kafka_consumer_lag_messages", "Records in Kafka that were not read yet")
FRAMES_INGESTED = frame_fifo(
    "counter", "streamchat_frames_ingested_total", "Frames that were encoded and stored in the FIFO", "camera"
)
FRAMES_DROPPED = frame_fifo(
    "counter",
    "streamchat_frames_dropped_total",
    "Frames dropped, by stage: read (late), encode (overtaken, encoder_failed), "
    "store (store_lost, store_full, replayed)",
    "camera",
    "stage",
    "reason",
)
FRAME_AGE_AT_STORE = frame_fifo(
    "histogram",
    "streamchat_frame_age_at_store_seconds",
    "Age of a frame when it was stored in the FIFO",
    buckets=AGES_S,
)
FIFO_ENTRIES = frame_fifo("gauge", "streamchat_fifo_entries", "Frames in the camera's FIFO", "camera")
FIFO_CAPACITY = frame_fifo("gauge", "streamchat_fifo_capacity", "Maximum number of frames in a FIFO")
FIFO_BYTES = frame_fifo("gauge", "streamchat_fifo_bytes", "Memory that Redis uses")
FIFO_LIMIT_BYTES = frame_fifo(
    "gauge", "streamchat_fifo_limit_bytes", "Maximum memory that Redis may use; 0: no limit"
)

# -- VisionEncoder

vision_encoder = partial(metric, "vision_encoder")
ENCODER_BATCH = vision_encoder(
    "histogram",
    "streamchat_encoder_batch_size",
    "Pictures per forward pass of the vision encoder",
    buckets=SIZES,
)
FRAME_ENCODE = vision_encoder(
    "histogram",
    "streamchat_frame_encode_seconds",
    "Duration of a forward pass of the vision encoder",
    buckets=WORK_S,
)

ENCODER_BUSY = vision_encoder(
    "counter", "streamchat_encoder_busy_seconds_total", "Time that the vision encoder spent in forward passes"
)

# -- LLMDecoder: the engine

llm_decoder = partial(metric, "llm_decoder")
FRAME_AGE = llm_decoder(
    "histogram",
    "streamchat_frame_age_at_decode_seconds",
    "Age of the newest frame visible to a token when the token was generated, for dialogs that follow a live camera",
    "camera",
    buckets=AGES_S,
)
DIALOGS = llm_decoder("gauge", "streamchat_dialogs_running", "Dialogs with an answer in progress", "camera")
DIALOG_PLACES = llm_decoder("gauge", "streamchat_dialog_places", "Maximum number of dialogs of the engine")
REFRESHES = llm_decoder(
    "counter",
    "streamchat_visual_refresh_total",
    "Frames added to the engine's rings",
)
SKIPPED_FRAMES = llm_decoder(
    "counter",
    "streamchat_engine_frames_skipped_total",
    "Frames that the engine skipped: they have NaN or infinity, or made it fail",
)
FAILED_ROWS = llm_decoder(
    "counter",
    "streamchat_engine_rows_failed_total",
    "Dialogs that ended because the model had NaN or infinity for them",
)
STEP = llm_decoder(
    "histogram",
    "streamchat_step_seconds",
    "Duration of a decoding step of all dialogs that are due",
    buckets=WORK_S,
)
BUSY = llm_decoder(
    "counter", "streamchat_engine_busy_seconds_total", "Time that the engine spent in decoding steps"
)
STEP_DIALOGS = llm_decoder("histogram", "streamchat_step_dialogs", "Dialogs per decoding step", buckets=SIZES)
CACHE_BYTES = llm_decoder(
    "gauge",
    "streamchat_cache_bytes",
    "Memory of the engine's caches, by kind: frames (rings) or text",
    "kind",
)
CACHE_EACH_BYTES = llm_decoder(
    "gauge",
    "streamchat_cache_each_bytes",
    "Cache memory of one camera (its frames) or one dialog (text of the longest, suspended ones included), by kind",
    "kind",
)
CACHE_LIMIT_BYTES = llm_decoder(
    "gauge", "streamchat_cache_limit_bytes", "Maximum memory of all caches of the engine"
)
DEVICE_BYTES = llm_decoder(
    "gauge",
    "streamchat_device_memory_bytes",
    "Memory in use on the decoder's device: of the whole GPU, or of its process",
    "device",
)
DEVICE_LIMIT_BYTES = llm_decoder(
    "gauge",
    "streamchat_device_memory_limit_bytes",
    "Total memory of the decoder's device",
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
    "Access units not sent, by reason: refused (invalid for readers) or dropped (Kafka did not accept them in time)",
    "camera",
    "reason",
)
