"""Questions to the decoders, from the chat API and the realtime API alike."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Awaitable, Callable

from services.access.caller import Caller
from services.access.rate_limits import MAX_OPEN_REQUESTS
from services.access.shared_places import SharedPlaces
from services.gateway.answer import Answer, Decode
from services.gateway.metrics import GatewayMetrics
from services.gateway.store_threads import StoreThreads
from services.messages.api_error import ApiError
from services.messages.dialog import DialogRequest
from services.messages.video import CameraState, ClipRefused, PlayedClip
from services.ports.frame_store import FrameStore, is_private
from services.settings import Settings

PlayClip = Callable[[bytes, str], Awaitable[PlayedClip]]

MAX_CAMERA_CHARACTERS = 256
CLIP_TIMEOUT_S = 120.0

log = logging.getLogger(__name__)


class QuestionService:
    """What the chat, realtime and camera APIs share: settings, store, decoder and clip player."""

    def __init__(
        self,
        settings: Settings,
        model_name: str,
        store: FrameStore,
        decode: Decode,
        play_clip: PlayClip,
        metrics: GatewayMetrics | None = None,
    ) -> None:
        self.settings = settings
        self.model_name = model_name
        self.store = StoreThreads(store)
        self.metrics = metrics or GatewayMetrics()
        self._decode = decode
        self._play_clip = play_clip
        num_dialogs = settings.max_dialogs * settings.decoder_replicas
        # The decoders bound all dialogs together. A gateway bounds those of one key, by its share.
        self._dialogs = SharedPlaces(
            MAX_OPEN_REQUESTS,
            what="dialogs",
            code="too_many_dialogs",
            num_of_key=max(1, math.ceil(num_dialogs / settings.gateway_replicas) // 2),
        )

    async def camera(self, caller: Caller, camera: str, param: str | None = None) -> CameraState:
        """The state of a camera that has frames.

        Raises ApiError 403 (not the caller's), 404 (unknown), 409 (no frame yet) or 503 (store lost).
        """
        caller.check_can_see(camera, param)
        known = 0 < len(camera) <= MAX_CAMERA_CHARACTERS and not is_private(camera)
        if known and (state := await self.store.call(lambda store: store.camera(camera))):
            return state
        notes = await self.store.call(lambda store: store.notes([camera])) if known else {}
        if camera in notes:
            problem = notes[camera].problem or "ask again shortly"
            message = f"camera {camera!r} sends, but no picture could be made of it yet: {problem}"
            raise ApiError(409, "no_frame", message, param=param, retry_after_s=1)
        message = (
            f"no camera called {camera[:80]!r} has sent a frame yet: GET /v1/cameras lists those that have"
        )
        raise ApiError(404, "unknown_camera", message, param=param)

    async def check_camera(self, caller: Caller, camera: str, param: str | None = None) -> None:
        """Like `camera`, but ignores a lost store: the decoder may still have the camera's frames."""
        try:
            await self.camera(caller, camera, param)
        except ApiError as error:
            if error.code != "store_lost":
                raise

    def check_model(self, model: str) -> None:
        """Raises ApiError 404 if this gateway serves another model."""
        if model != self.model_name:
            message = f"no model is called {model[:80]!r}: this is {self.model_name!r}"
            raise ApiError(404, "model_not_found", message, param="model")

    async def play_clip(self, media: bytes, kind: str, param: str) -> PlayedClip:
        """Play a clip or picture into a private FIFO. Raises ApiError if it cannot be played."""
        try:
            async with asyncio.timeout(CLIP_TIMEOUT_S):
                return await self._play_clip(media, kind)
        except ClipRefused as error:
            raise ApiError(error.status, error.code, error.message, param=param) from error
        except Exception as error:
            log.warning("clip not played: %r", error)
            message = "the service that plays clips cannot be reached: try again shortly"
            raise ApiError(503, "clip_player_lost", message, param=param, retry_after_s=1) from error

    async def ask(self, caller: Caller, request: DialogRequest) -> Answer:
        """Send the question to a decoder and wait until it is admitted. Raises ApiError if it is refused.

        The answer must be closed. Until then it holds one of the key's dialogs.
        """
        key_id = caller.key_id
        self._dialogs.take(key_id)
        answer = Answer(self._decode, request, self.metrics, on_close=lambda: self._dialogs.give_back(key_id))
        await answer.start()
        return answer

    def close(self) -> None:
        """End the threads."""
        self.store.close()
