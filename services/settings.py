"""Every setting of the services, read from the environment here and nowhere else.

The field `kafka_topic_pattern` is set by the variable `STREAMCHAT_KAFKA_TOPIC_PATTERN`. The descriptions below are the
text of docs/settings.md and of the chart's values: `python deploy/mirror_settings.py` copies them there.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Annotated, Any, Literal
from urllib.parse import unquote

from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_core import ErrorDetails
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

PREFIX = "STREAMCHAT_"
REDIS_SCHEMES = (
    *(f"{scheme}{kind}://" for kind in ("", "+sentinel", "+cluster") for scheme in ("redis", "rediss")),
    "unix://",
)
REDIS_PORTS = {"": 6379, "sentinel": 26379, "cluster": 6379}

GpuShare = Annotated[float, Field(ge=0, le=1)]  # a replica runs on one device


class StrictEnvironment(EnvSettingsSource):
    """All variables with our prefix, also those that no setting has: `extra="forbid"` then refuses them."""

    def __call__(self) -> dict[str, Any]:
        prefix = PREFIX.lower()  # as pydantic-settings holds the names
        return {
            name.removeprefix(prefix): text for name, text in self.env_vars.items() if name.startswith(prefix)
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class RedisAddress:
    """The parts of a Redis URL."""

    url: str
    kind: str  # "": one server; "sentinel" or "cluster"
    tls: bool
    hosts: tuple[tuple[str, int], ...]
    service: str  # name of the master that the Sentinels watch
    db: int
    username: str
    password: str

    @classmethod
    def parse(cls, url: str) -> RedisAddress:
        """ValueError says what is wrong with the URL."""
        scheme, separator, rest = url.partition("://")
        if f"{scheme}://" not in REDIS_SCHEMES:
            got = scheme if separator else "an address without ://"
            raise ValueError(f"got {got}, wanted one that begins with {', '.join(REDIS_SCHEMES)}")
        location, _, path = rest.partition("?")[0].partition("/")
        user, _, hosts = location.rpartition("@")
        username, _, password = user.partition(":")
        kind = scheme.partition("+")[2]
        service, _, db = path.partition("/") if kind == "sentinel" else ("", "", path)
        if kind == "sentinel" and not service:
            raise ValueError(
                "got Sentinels without a master's name, wanted redis+sentinel://host:port,.../name/db"
            )
        if kind and not hosts:
            raise ValueError(f"got no host, wanted redis+{kind}://host:port,...")
        if db and scheme != "unix" and (not db.isdecimal() or (kind == "cluster" and int(db))):
            raise ValueError(f"got database {db!r}, wanted {'none on a Cluster' if kind else 'a number'}")
        return cls(
            url=url,
            kind=kind,
            tls=scheme.startswith("rediss"),
            hosts=tuple(_host(host, REDIS_PORTS[kind]) for host in hosts.split(",")) if hosts else (),
            service=service,
            db=int(db) if db.isdecimal() else 0,
            username=unquote(username),
            password=unquote(password),
        )

    @property
    def shown(self) -> str:
        """The address for messages, without a password."""
        return self.url.rpartition("@")[2].rpartition("//")[2]


def _host(text: str, default_port: int) -> tuple[str, int]:
    has_port = ":" in text.rpartition("]")[2]
    host, _, port = text.rpartition(":") if has_port else (text, "", str(default_port))
    if not port.isdecimal():
        raise ValueError(f"got {text!r}, wanted host:port")
    return host.strip("[]"), int(port)


class Settings(BaseSettings):
    """All settings. A value that is given wins over the environment, which wins over the default.

    `Settings.from_environment(...)` is the same with errors for people.
    """

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        extra="forbid",
        frozen=True,
        allow_inf_nan=False,
        hide_input_in_errors=True,
        use_attribute_docstrings=True,
    )

    model: str = ""
    """StreamChat folder to serve. Empty: streamchat-tiny, which ships with the code."""
    kafka_bootstrap_servers: str = ""
    """Addresses of the Kafka brokers, as host:port,... Empty: `streamchat up` starts a broker."""
    kafka_topic_pattern: str = r"cameras(\..+)?"
    """Topics to read, as a regular expression over the whole name."""
    kafka_group: str = "streamchat-frame-fifo"
    """Consumer group of the FrameFifo replicas. The fingerprint of the vision encoder is added to it."""
    kafka_dead_letter_topic: str = "cameras.dead-letter"
    """Topic for packets that cannot be used."""
    kafka_security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = "PLAINTEXT"
    """How to connect to the brokers: in plain text or over TLS, with or without a user."""
    kafka_sasl_mechanism: str = "SCRAM-SHA-512"
    """How the user is authenticated at the brokers: SCRAM-SHA-512 or SCRAM-SHA-256."""
    kafka_username: str = ""
    """User name at the brokers."""
    kafka_password: SecretStr = SecretStr("")
    """Password at the brokers."""
    kafka_ca_file: str = ""
    """Certificate authority of the brokers' certificates. Empty: those of the system."""
    max_packet_bytes: PositiveInt = 4 * 2**20
    """Largest encoded picture (access unit) that is accepted."""
    redis_url: str = ""
    """Address of the Redis store: redis://host:port/db, or rediss:// for TLS. Of Sentinels:
    redis+sentinel://host:port,host:port/name-of-the-master/db. Of a Cluster: redis+cluster://host:port,host:port.
    Empty: `streamchat up` starts a store."""
    redis_username: str = ""
    """User name at the store (an ACL user)."""
    redis_password: SecretStr = SecretStr("")
    """Password at the store."""
    redis_sentinel_username: str = ""
    """User name at the Sentinels."""
    redis_sentinel_password: SecretStr = SecretStr("")
    """Password at the Sentinels."""
    redis_ca_file: str = ""
    """Certificate authority of the store's certificate. Empty: those of the system."""
    weights: str = "auto"
    """Number format of the decoder's weights: float32, bfloat16, int8, float8, or auto (bfloat16 on a GPU,
    float32 on a CPU)."""
    fifo_frames: NonNegativeInt = 0
    """Frames kept per camera. 0: the model's own number."""
    fifo_tiers: str = ""
    """Older frames at a lower rate, as frames@seconds,... such as `10@1,6@10`.
    Empty: only the newest frames, at one rate."""
    frames_per_second: NonNegativeFloat = 0.0
    """Frames sampled per camera and second. 0: the model's own number."""
    cameras_allowed: str = r".+"
    """Camera ids that are accepted, as a regular expression over the whole id."""
    camera_topics: str = ""
    """Topics that cameras must come from, as `cameras=topics` pairs with a space between them. Both are regular
    expressions over the whole id and name; the first match decides: `yard-.+=cameras[.]yard .+=cameras`.
    Without a match, a camera belongs to the topic on which it was first seen while it sends."""
    max_cameras: PositiveInt = 256
    """Most cameras watched at once."""
    silent_after_s: PositiveFloat = 5.0
    """A camera without a frame for this long is shown as silent."""
    forget_after_s: PositiveFloat = 60.0
    """The frames of a silent camera expire after this long."""
    max_capture_skew_s: PositiveFloat = 30.0
    """A packet whose capture time is further in the future or past goes to the dead-letter topic."""
    max_lag_s: PositiveFloat = 1.0
    """Frames older than this are skipped while newer ones wait.
    A reader that is further behind skips to a keyframe."""
    max_pixels: PositiveInt = 4096 * 2304
    """Largest picture that is decoded, in pixels."""
    encoder_batch: PositiveInt = 16
    """Most pictures encoded together."""
    max_dialogs: PositiveInt = 64
    """Most dialogs decoded at once per replica. One more is answered with 429."""
    decoder_cameras: PositiveInt = 64
    """Most cameras kept at once per decoder replica. Frozen answers keep a copy of theirs too."""
    cache_bytes: NonNegativeInt = 0
    """Memory for frames and text per decoder replica.
    0: 2048 tokens for each dialog, or what is free on a GPU."""
    max_prompt_tokens: PositiveInt = 2048
    """Longest prompt, in tokens."""
    max_completion_tokens: PositiveInt = 1024
    """Longest answer, in tokens."""
    max_answer_s: PositiveFloat = 600.0
    """Longest answer, in seconds. It ends there with the finish reason `length`."""
    max_request_bytes: PositiveInt = 24 * 2**20
    """Largest request body."""
    max_held_request_bytes: PositiveInt = 128 * 2**20
    """Bytes of request bodies that a Gateway replica holds at once. An API key may hold half of them."""
    max_clip_memory_bytes: PositiveInt = 2**30
    """Address space of the process that decodes a clip."""
    max_clip_decode_s: PositiveFloat = 20.0
    """A clip that takes longer to decode is refused."""
    access: Literal["keys", "open"] = "keys"
    """Who is served. keys: every request needs an API key. open: only this machine is served."""
    keys_file: str = ""
    """File with the hashes of the API keys (`streamchat keys`). It is read again when it changes."""
    requests_per_minute: PositiveInt = 1200
    """Requests per minute of an API key without a limit of its own. More are answered with 429."""
    requests_at_once: PositiveInt = 64
    """Open requests, streams and sockets of an API key without a limit of its own.
    More are answered with 429."""
    origins_allowed: str = ""
    """Other sites whose pages may call the API, as https://host,..."""
    api_key: SecretStr = SecretStr("")
    """API key that `streamchat chat` and `streamchat cameras` send."""
    decoder_replicas: PositiveInt = 1
    """Number of LLMDecoder replicas."""
    encoder_replicas: PositiveInt = 1
    """Number of VisionEncoder replicas."""
    frame_fifo_replicas: PositiveInt = 1
    """Number of FrameFifo replicas."""
    gateway_replicas: PositiveInt = 1
    """Number of Gateway replicas."""
    num_gpus_per_decoder: GpuShare = 0.0
    """GPU of each LLMDecoder replica: 0, a part of one, or 1."""
    num_gpus_per_encoder: GpuShare = 0.0
    """GPU of each VisionEncoder replica: 0, a part of one, or 1."""
    torch_threads: PositiveInt = 1
    """CPU threads of each replica that runs torch."""

    @field_validator("redis_url")
    @classmethod
    def _is_an_address_without_a_password(cls, url: str) -> str:
        if url and RedisAddress.parse(url).password:  # a URL is shown in messages, a password never
            raise ValueError("got a URL with a password in it, wanted that in STREAMCHAT_REDIS_PASSWORD")
        return url

    @field_validator("camera_topics")
    @classmethod
    def _are_pairs_of_patterns(cls, text: str) -> str:
        for pair in text.split():
            camera, separator, topic = pair.partition("=")
            if not (camera and separator and topic):
                raise ValueError(f"got {pair!r}, wanted cameras=topics")
            for pattern in (camera, topic):
                try:
                    re.compile(pattern)
                except re.error as error:
                    raise ValueError(f"got {pattern!r}, wanted a regular expression: {error}") from None
        return text

    @property
    def camera_topic_rules(self) -> list[tuple[str, str]]:
        """The pairs of `camera_topics`, in order: patterns of camera ids and of topics."""
        pairs = (pair.partition("=") for pair in self.camera_topics.split())
        return [(camera, topic) for camera, _, topic in pairs]

    @model_validator(mode="after")
    def _sasl_has_a_user(self) -> Settings:
        sasl = self.kafka_security_protocol.startswith("SASL")
        if sasl and not (self.kafka_username and self.kafka_password.get_secret_value()):
            wanted = "wanted STREAMCHAT_KAFKA_USERNAME and STREAMCHAT_KAFKA_PASSWORD too"
            raise ValueError(
                f"STREAMCHAT_KAFKA_SECURITY_PROTOCOL: got {self.kafka_security_protocol}, {wanted}"
            )
        return self

    @classmethod
    def from_environment(cls, **values: Any) -> Settings:
        """Read `STREAMCHAT_*`; `values` win over it. ValueError names each wrong variable, in one line."""
        try:
            return cls(**values)
        except ValidationError as error:
            raise ValueError("; ".join(_sentence(details) for details in error.errors())) from None

    def as_environment(self) -> dict[str, str]:
        """The variables that make these settings again: how `streamchat up` hands them to Ray."""
        values = {name: getattr(self, name) for name in Settings.model_fields}
        return {
            PREFIX + name.upper(): value.get_secret_value() if isinstance(value, SecretStr) else str(value)
            for name, value in values.items()
        }

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Called by pydantic-settings: where values come from, the strongest first."""
        return init_settings, StrictEnvironment(settings_cls)


def _sentence(details: ErrorDetails) -> str:
    """Which variable is wrong, what it is and what it should be. The value of an unknown variable may be a secret."""
    if not details["loc"]:
        return str(details.get("ctx", {})["error"])
    name = PREFIX + str(details["loc"][0]).upper()
    match details["type"]:
        case "extra_forbidden":
            similar = get_close_matches(str(details["loc"][0]), Settings.model_fields)
            hint = "".join(f"; did you mean {PREFIX}{setting.upper()}?" for setting in similar[:1])
            return f"{name}: no such setting{hint} (docs/settings.md lists all)"
        case "value_error":
            return f"{name}: {details.get('ctx', {})['error']}"
        case _:
            wanted = details["msg"].removeprefix("Input should be ").partition(", unable to parse")[0]
            return f"{name}: got {details['input']!r}, wanted {wanted}"
