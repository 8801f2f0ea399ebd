"""The smallest Serve application that `up` can hold up: for tests of what is around the app."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from ray import serve

from services.settings import Settings

api = FastAPI()


@api.get("/readyz")
def ready() -> dict[str, str]:
    """Where the broker and the store are, as the replica was told."""
    settings = Settings.from_environment()
    return {"broker": settings.kafka_bootstrap_servers, "store": settings.redis_url, "model": settings.model}


class Answering:
    """Answers."""


deployment: Any = serve.deployment(serve.ingress(api)(Answering), ray_actor_options={"num_cpus": 0.1})
app = deployment.bind()
