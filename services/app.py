"""Binds the deployments: `serve run services.app:app`, on a laptop and under KubeRay alike.

The services are plain classes. Here they become Ray Serve deployments and get their parts:

    Gateway --> LLMDecoder (routed by camera) --> Redis
    FrameFifo --> VisionEncoder;  Kafka --> FrameFifo --> Redis
    Gateway --> ClipPlayer (in the FrameFifo's replicas) --> VisionEncoder, Redis
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from ray import serve
from ray.serve import Application
from ray.serve.config import RequestRouterConfig
from ray.serve.experimental.consistent_hash_router import ConsistentHashRouter
from ray.serve.handle import DeploymentHandle

from model.checkpoint.fingerprint import encoder_fingerprint
from model.config import SHIPPED_FOLDER, StreamChatConfig
from services.access.rate_limits import MAX_OPEN_REQUESTS
from services.gateway.gateway import make_app
from services.llm_decoder.replica_policy import FRAME_AGE, FrameAges
from services.messages.dialog import DialogEvent, DialogRequest
from services.messages.video import PlayedClip, VisualTokens
from services.ports.recorder import MetricsRecorder
from services.settings import Settings

# The dialogs of a camera go to the replica that has its frames; two others are fallbacks when it is full or gone.
ROUTER = RequestRouterConfig.model_validate(
    {"request_router_class": ConsistentHashRouter, "request_router_kwargs": {"num_fallback_replicas": 2}}
)

log = logging.getLogger(__name__)


def model_folder(settings: Settings) -> Path:
    """The StreamChat folder to serve."""
    return Path(settings.model) if settings.model else SHIPPED_FOLDER


def device_of(num_gpus: float) -> str:
    """The torch device of a replica with that many GPUs."""
    return "cuda" if num_gpus > 0 else "cpu"


def create_recorder(service: str) -> MetricsRecorder:
    """The recorder of a replica's metrics; called in the replica itself."""
    from services.adapters.ray_recorder import RayRecorder

    return RayRecorder(service, serve.get_replica_context().replica_id.unique_id)


class VisionEncoderReplica:
    """VisionEncoder as a deployment."""

    def __init__(self, settings: Settings) -> None:
        from services.vision_encoder.vision_encoder import VisionEncoder

        device = device_of(settings.num_gpus_per_encoder)
        self._encoder = VisionEncoder(
            model_folder(settings),
            device=device,
            threads=settings.torch_threads,
            max_pictures=settings.encoder_batch,
            recorder=create_recorder("vision_encoder"),
        )

    async def encode(self, pictures: list[bytes]) -> list[VisualTokens]:
        """See VisionEncoder.encode."""
        return await self._encoder.encode(pictures)


class FrameFifoReplica:
    """FrameFifo as a deployment, with a ClipPlayer beside it. It reads cameras from its start on."""

    def __init__(self, settings: Settings, encoder: DeploymentHandle, fingerprint: str) -> None:
        from services.adapters.kafka_access import KafkaAccess
        from services.adapters.kafka_reader import KafkaVideoReader
        from services.adapters.redis_frame_store import RedisFrameStore
        from services.clip_player.clip_player import ClipPlayer
        from services.frame_fifo.frame_fifo import FrameFifo

        async def encode(pictures: list[bytes]) -> list[VisualTokens]:
            return await encoder.encode.remote(pictures)

        reader = KafkaVideoReader(
            settings.kafka_bootstrap_servers,
            topic_pattern=settings.kafka_topic_pattern,
            group=f"{settings.kafka_group}-{fingerprint}",  # during an upgrade, both encoders see each frame
            dead_letter_topic=settings.kafka_dead_letter_topic,
            max_packet_bytes=settings.max_packet_bytes,
            alone=settings.frame_fifo_replicas == 1,
            access=KafkaAccess.from_settings(settings),
        )
        store = RedisFrameStore.from_settings(settings, fingerprint)
        config = StreamChatConfig.load(model_folder(settings))
        recorder = create_recorder("frame_fifo")
        self._fifo = FrameFifo(settings, config, reader, store, encode, recorder=recorder)
        self._clips = ClipPlayer(settings, config, store, encode)
        self._work = asyncio.get_running_loop().create_task(self._fifo.run())

    async def play_clip(self, media: bytes, kind: str) -> PlayedClip:
        """See ClipPlayer.play."""
        return await self._clips.play(media, kind)

    async def check_health(self) -> None:
        """Raises when the FrameFifo has ended, so that the replica is replaced."""
        if self._work.done():
            raise RuntimeError("the FrameFifo has ended") from self._work.exception()
        self._fifo.check()


class LLMDecoderReplica:
    """LLMDecoder as a deployment."""

    def __init__(self, settings: Settings, fingerprint: str) -> None:
        from services.adapters.redis_frame_store import RedisFrameStore
        from services.llm_decoder.llm_decoder import LLMDecoder

        store = RedisFrameStore.from_settings(settings, fingerprint)
        device = device_of(settings.num_gpus_per_decoder)
        recorder = create_recorder("llm_decoder")
        self._decoder = LLMDecoder(model_folder(settings), settings, store, device=device, recorder=recorder)
        self._frame_ages = FrameAges()

    async def decode(self, request: DialogRequest) -> AsyncGenerator[list[DialogEvent]]:
        """See LLMDecoder.decode."""
        stream = self._decoder.decode(request)
        try:
            async for events in stream:
                self._frame_ages.record(events)
                yield events
        finally:
            await stream.aclose()

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """Called by Ray Serve when it scales the replicas: see ReplicaPolicy."""
        return {FRAME_AGE: self._frame_ages.mean_s()}

    async def ready(self) -> bool:
        """True as soon as the model is loaded."""
        self._decoder.check()
        return True

    async def stats(self) -> dict[str, float]:
        """See LLMDecoder.stats."""
        return self._decoder.stats()

    async def check_health(self) -> None:
        """Raises when a thread has ended, so that the replica is replaced."""
        self._decoder.check()


class GatewayReplica:
    """The gateway's ASGI app, given handles in place of parts."""

    def __init__(
        self,
        settings: Settings,
        model_name: str,
        decoder: DeploymentHandle,
        frame_fifo: DeploymentHandle,
        fingerprint: str,
    ) -> None:
        self._settings, self._model_name, self._fingerprint = settings, model_name, fingerprint
        self._decoder, self._frame_fifo = decoder, frame_fifo

    def __serve_build_asgi_app__(self) -> FastAPI:
        """Called by Ray Serve in the replica."""
        from services.adapters.rate_limit_store import rate_limit_storage
        from services.adapters.redis_frame_store import RedisFrameStore

        decoder, frame_fifo = self._decoder, self._frame_fifo

        async def decode(request: DialogRequest) -> AsyncGenerator[list[DialogEvent]]:
            session_id = request.camera or request.request_id  # without a camera, any replica will do
            stream: Any = decoder.options(stream=True, session_id=session_id).decode.remote(request)
            try:
                async for events in stream:
                    yield events
            finally:
                stream.cancel()  # harmless when it has ended

        async def play_clip(media: bytes, kind: str) -> PlayedClip:
            return await frame_fifo.play_clip.remote(media, kind)

        async def ready() -> None:
            await decoder.ready.remote()

        store = RedisFrameStore.from_settings(self._settings, self._fingerprint)
        recorder = create_recorder("gateway")
        rate_limits = rate_limit_storage(self._settings)
        return make_app(
            self._settings, self._model_name, store, decode, play_clip, ready, recorder, rate_limits
        )


def build(settings: Settings) -> Application:
    """Bind the four deployments. FileNotFoundError or ValueError when the model folder is invalid."""
    model_name = StreamChatConfig.load(model_folder(settings)).name
    fingerprint = encoder_fingerprint(model_folder(settings))
    encoder = serve.deployment(
        name="VisionEncoder",
        num_replicas=settings.encoder_replicas,
        max_ongoing_requests=64,
        ray_actor_options={"num_cpus": 0.1, "num_gpus": settings.num_gpus_per_encoder},
    )(VisionEncoderReplica).bind(settings)
    frame_fifo = serve.deployment(
        name="FrameFifo",
        num_replicas=settings.frame_fifo_replicas,
        max_ongoing_requests=64,
        health_check_period_s=5,
        ray_actor_options={"num_cpus": 0.1},
    )(FrameFifoReplica).bind(settings, encoder, fingerprint)
    decoder = serve.deployment(
        name="LLMDecoder",
        num_replicas=settings.decoder_replicas,
        # More than the engine has room for: requests that do not fit get an error at once instead of queueing.
        max_ongoing_requests=settings.max_dialogs * 8,
        health_check_period_s=1,  # Serve replaces a replica after three failed checks
        health_check_timeout_s=5,
        ray_actor_options={"num_cpus": 0.1, "num_gpus": settings.num_gpus_per_decoder},
        request_router_config=ROUTER,
    )(LLMDecoderReplica).bind(settings, fingerprint)
    gateway = serve.deployment(
        name="Gateway",
        num_replicas=settings.gateway_replicas,
        max_ongoing_requests=MAX_OPEN_REQUESTS,
        ray_actor_options={"num_cpus": 0.1},
    )(serve.ingress()(GatewayReplica))
    return gateway.bind(settings, model_name, decoder, frame_fifo, fingerprint)


def __getattr__(name: str) -> Application:
    """`app` is built from the environment on first access; importing this module builds nothing."""
    if name == "app":
        return build(Settings.from_environment())
    raise AttributeError(name)
