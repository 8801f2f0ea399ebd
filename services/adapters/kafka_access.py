"""What opens a Kafka broker, in the settings' words. Knows no Kafka client."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from services.settings import Settings


@dataclass(frozen=True, slots=True, kw_only=True)
class KafkaAccess:
    """Who we are to a broker, and how we know that it is the right one."""

    protocol: str = "PLAINTEXT"
    mechanism: str = "SCRAM-SHA-512"
    username: str = ""
    password: str = field(default="", repr=False)
    ca_file: str = ""

    @classmethod
    def of(cls, settings: Settings) -> KafkaAccess:
        """That of the settings."""
        return cls(
            protocol=settings.kafka_security_protocol,
            mechanism=settings.kafka_sasl_mechanism,
            username=settings.kafka_username,
            password=settings.kafka_password.get_secret_value(),
            ca_file=settings.kafka_ca_file,
        )

    @property
    def options(self) -> dict[str, Any]:
        """The client's."""
        options: dict[str, Any] = {"security_protocol": self.protocol}
        if self.protocol.startswith("SASL"):
            options["sasl_mechanism"] = self.mechanism
            options |= {"sasl_plain_username": self.username, "sasl_plain_password": self.password}
        if self.protocol.endswith("SSL") and self.ca_file:
            options["ssl_cafile"] = self.ca_file
        return options


OPEN = KafkaAccess()  # no password and no TLS, as the broker of `streamchat up`
