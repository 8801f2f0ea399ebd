"""The smallest Serve application that `streamchat up` can run: for tests of everything but the app itself."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from ray import serve

from services.settings import Settings

api = FastAPI()


@api.get("/readyz")
def ready() -> dict[str, str]:
    """The broker, store and model that the replica got from its environment."""
    settings = Settings.from_environment()
    return {"broker": settings.kafka_bootstrap_servers, "store": settings.redis_url, "model": settings.model}


class Answering:
    """Answers."""


deployment: Any = serve.deployment(serve.ingress(api)(Answering), ray_actor_options={"num_cpus": 0.1})
app = deployment.bind()
