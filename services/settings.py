"""Every setting of the services, read from the environment here and nowhere else.

A field `kafka_topic_pattern` is set by `STREAMCHAT_KAFKA_TOPIC_PATTERN`. An unknown `STREAMCHAT_` variable or a
value of the wrong type stops the start with a message that says what was got and what is wanted.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from typing import Any
from urllib.parse import urlsplit

PREFIX = "STREAMCHAT_"


ACCESS = ("keys", "open")
KAFKA_PROTOCOLS = ("PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL")


def setting(default: Any, about: str, *, secret: bool = False) -> Any:
    """A dataclass field with its one-line description (shown in README's table); a secret is never printed."""
    return field(default=default, metadata={"about": about, "secret": secret}, repr=not secret)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Checked when made; a ValueError names the setting, what was got and what is wanted."""

    model: str = setting("", "StreamChat folder to serve; empty: the streamchat-tiny that ships")
    kafka_bootstrap_servers: str = setting("", "host:port,...; empty: `streamchat up` starts a broker")
    kafka_topic_pattern: str = setting(
        r"cameras(\..+)?", "topics to read, as a regular expression over the whole name"
    )
    kafka_group: str = setting("streamchat-frame-fifo", "consumer group of the FrameFifo replicas")
    kafka_dead_letter_topic: str = setting("cameras.dead-letter", "where packets that cannot be used go")
    kafka_security_protocol: str = setting("PLAINTEXT", "PLAINTEXT, SSL, SASL_PLAINTEXT or SASL_SSL")
    kafka_sasl_mechanism: str = setting("SCRAM-SHA-512", "SCRAM-SHA-512 or SCRAM-SHA-256")
    kafka_username: str = setting("", "who we are to the broker")
    kafka_password: str = setting("", "its password", secret=True)
    kafka_ca_file: str = setting("", "authority of the broker's certificate; empty: the system's")
    max_packet_bytes: int = setting(4 * 2**20, "largest encoded access unit")
    redis_url: str = setting(
        "", "redis://host:port/db, or rediss:// over TLS; empty: `streamchat up` starts a store"
    )
    redis_username: str = setting("", "who we are to the store: the name of an ACL user")
    redis_password: str = setting("", "its password", secret=True)
    redis_ca_file: str = setting("", "authority of the store's certificate; empty: the system's")
    weights: str = setting(
        "auto", "the decoder's: float32, bfloat16, int8 or float8; auto: bfloat16 on a GPU, float32 on a CPU"
    )
    fifo_frames: int = setting(0, "frames kept per camera; 0: the model's own number")
    fifo_tiers: str = setting(
        "", "thinner older frames, as frames@seconds,...: `10@1,6@10`; empty: one rate, the newest frames"
    )
    frames_per_second: float = setting(
        0.0, "frames looked at per camera and second; 0: the model's own number"
    )
    cameras_allowed: str = setting(
        r".+", "camera ids that may appear, as a regular expression over the whole id"
    )
    max_cameras: int = setting(256, "cameras watched at once")
    silent_after_s: float = setting(5.0, "a camera without a frame for this long is shown as silent")
    forget_after_s: float = setting(60.0, "a silent camera's frames expire after this long")
    max_capture_skew_s: float = setting(
        30.0, "a packet this far in the future or past goes to the dead letters"
    )
    max_lag_s: float = setting(
        1.0, "older frames are passed over while newer ones wait; a reader further behind skips to a keyframe"
    )
    max_pixels: int = setting(4096 * 2304, "largest picture that is decoded")
    encoder_batch: int = setting(16, "pictures encoded together at most")
    max_dialogs: int = setting(64, "dialogs decoded at once per replica; one more is answered with 429")
    decoder_cameras: int = setting(
        64, "cameras kept at once per decoder replica; frozen answers keep a copy of theirs too"
    )
    cache_bytes: int = setting(
        0, "memory for frames and text per decoder replica; 0: 2048 tokens a dialog, or what a GPU has left"
    )
    max_prompt_tokens: int = setting(2048, "longest prompt")
    max_completion_tokens: int = setting(1024, "longest answer")
    max_request_bytes: int = setting(24 * 2**20, "largest request body")
    max_clip_memory_bytes: int = setting(2**30, "address space of the process that decodes a clip")
    max_clip_decode_s: float = setting(20.0, "a clip that takes longer to decode is refused")
    access: str = setting("keys", "keys: every request brings one; open: this machine alone is served")
    keys_file: str = setting("", "hashes of the API keys (`streamchat keys`); read again when it changes")
    requests_per_minute: int = setting(1200, "requests of a key that has no number of its own; then 429")
    requests_at_once: int = setting(64, "open requests, streams and sockets of a key, likewise")
    origins_allowed: str = setting("", "other sites whose pages may call, as https://host,...")
    api_key: str = setting("", "what `streamchat chat` and `streamchat cameras` show", secret=True)
    decoder_replicas: int = setting(1, "LLMDecoder replicas")
    encoder_replicas: int = setting(1, "VisionEncoder replicas")
    frame_fifo_replicas: int = setting(1, "FrameFifo replicas")
    gateway_replicas: int = setting(1, "Gateway replicas")
    num_gpus_per_decoder: float = setting(0.0, "GPUs of an LLMDecoder replica")
    num_gpus_per_encoder: float = setting(0.0, "GPUs of a VisionEncoder replica")
    torch_threads: int = setting(1, "CPU threads of each replica that runs torch")

    def __post_init__(self) -> None:
        for name in ("frames_per_second", "fifo_frames"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}: got {getattr(self, name)}, wanted 0 (the model's own) or more")
        for name, wanted in (("access", ACCESS), ("kafka_security_protocol", KAFKA_PROTOCOLS)):
            if getattr(self, name) not in wanted:
                raise ValueError(f"{name}: got {getattr(self, name)!r}, wanted one of {', '.join(wanted)}")
        if self.kafka_security_protocol.startswith("SASL") and not (
            self.kafka_username and self.kafka_password
        ):
            wanted = "wanted kafka_username and kafka_password too"
            raise ValueError(f"kafka_security_protocol: got {self.kafka_security_protocol}, {wanted}")
        if urlsplit(self.redis_url).password:  # a URL is shown in messages, a password never
            raise ValueError("redis_url: got one with a password in it, wanted that in redis_password")
        for f in fields(self):
            value = getattr(self, f.name)
            positive = f.name.startswith(("max_", "requests_")) or f.name.endswith(
                ("_replicas", "_batch", "_threads", "_s")
            )
            if positive and value <= 0:
                raise ValueError(f"{f.name}: got {value}, wanted more than 0")

    @staticmethod
    def from_environment(environment: Mapping[str, str] | None = None) -> Settings:
        """Read `STREAMCHAT_*`; raises ValueError for an unknown name or a wrong value."""
        environment = os.environ if environment is None else environment
        types = {f.name: type(f.default) for f in fields(Settings) if f.default is not MISSING}
        values: dict[str, Any] = {}
        for key, text in environment.items():
            if not key.startswith(PREFIX):
                continue
            name = key.removeprefix(PREFIX).lower()
            if name not in types:
                raise ValueError(
                    f"{key}: no such setting; known: {', '.join(PREFIX + n.upper() for n in types)}"
                )
            try:
                values[name] = types[name](text)
            except ValueError as error:
                raise ValueError(f"{key}: got {text!r}, wanted {types[name].__name__}") from error
        return Settings(**values)

    def as_environment(self) -> dict[str, str]:
        """The variables that make these settings again: how `streamchat up` hands them to Ray."""
        return {PREFIX + f.name.upper(): str(getattr(self, f.name)) for f in fields(self)}
