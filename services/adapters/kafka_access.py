"""How to log in to a Kafka broker, from the settings. Imports no Kafka client."""

from __future__ import annotations

import socket
from dataclasses import dataclass, field
from typing import Any

from services.ports.video_log import LogLost
from services.settings import Settings


@dataclass(frozen=True, slots=True, kw_only=True)
class KafkaAccess:
    """Credentials for a broker, and the authority that signs its certificate."""

    protocol: str = "PLAINTEXT"
    mechanism: str = "SCRAM-SHA-512"
    username: str = ""
    password: str = field(default="", repr=False)
    ca_file: str = ""

    @classmethod
    def from_settings(cls, settings: Settings) -> KafkaAccess:
        """The access that the settings describe."""
        return cls(
            protocol=settings.kafka_security_protocol,
            mechanism=settings.kafka_sasl_mechanism,
            username=settings.kafka_username,
            password=settings.kafka_password.get_secret_value(),
            ca_file=settings.kafka_ca_file,
        )

    @property
    def options(self) -> dict[str, Any]:
        """Options of the Kafka client."""
        options: dict[str, Any] = {"security_protocol": self.protocol}
        if self.protocol.startswith("SASL"):
            options["sasl_mechanism"] = self.mechanism
            options |= {"sasl_plain_username": self.username, "sasl_plain_password": self.password}
        if self.protocol.endswith("SSL") and self.ca_file:
            options["ssl_cafile"] = self.ca_file
        return options


OPEN = KafkaAccess()  # no password and no TLS, as the broker of `streamchat up`


def check_reachable(bootstrap_servers: str, timeout_s: float = 3.0) -> None:
    """LogLost at once when nothing listens there: the client would retry for long and leave its socket open."""
    problem: Exception | None = None
    for server in bootstrap_servers.split(","):
        host, _, port = server.strip().rpartition(":")
        try:
            with socket.create_connection((host.strip("[]"), int(port)), timeout=timeout_s):
                return
        except (OSError, ValueError) as error:
            problem = error
    raise LogLost(f"no Kafka broker answers at {bootstrap_servers}: {problem}")
