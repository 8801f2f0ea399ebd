"""LLMDecoder: answers dialogs about cameras, with the newest frames for every token. A shim over the engine."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import AsyncGenerator
from dataclasses import replace
from pathlib import Path

import torch

from model.checkpoint.folder import load_model
from model.checkpoint.tokenizer import load_tokenizer
from model.checkpoint.weights import compute_dtype, parse_weight_format, quantise_to
from model.engine.engine import Engine
from model.engine.retention import Retention
from model.network.streamchat import StreamChat
from services.llm_decoder.decode_loop import DecodeLoop
from services.llm_decoder.event_queue import EventQueue
from services.llm_decoder.frame_follower import FrameFollower
from services.llm_decoder.live_dialog import (
    MAX_TOKENS_PER_S,
    MIN_TOKENS_PER_S,
    LiveDialog,
    decoder_lost,
    retryable_failure,
)
from services.llm_decoder.metrics import LLMDecoderMetrics
from services.llm_decoder.prompt import PromptBuilder, PromptTooLong
from services.llm_decoder.suspended_dialogs import SuspendedDialogs
from services.llm_decoder.text_stream import TextStream
from services.messages.dialog import NO_CAMERA, DialogEnded, DialogEvent, DialogFailed, DialogRequest
from services.messages.video import Frame
from services.ports.frame_store import BEFORE_ALL, FrameStore, StoreLost, is_private
from services.ports.metric_catalogue import DIALOG_PLACES
from services.ports.recorder import MetricsRecorder
from services.settings import Settings

STUCK_AFTER_S = 7.0  # a thread that has not moved for this long is replaced, with its replica
TELL_AFTER_S = 4.0  # its dialogs are told sooner, and go on at another decoder
HEARTBEAT_S = 1.0  # the longest time without a list of events; an empty one says that the decoder is well
STORE_TIMEOUT_S = 5.0
GPU_SHARE = 0.85  # of the memory that the weights leave free; a forward pass needs the rest

log = logging.getLogger(__name__)


def create_engine(model: StreamChat, settings: Settings) -> Engine:
    """The engine, with the memory that the settings allow; on a GPU by default most of what the weights leave free."""
    retention = Retention.parse(settings.fifo_tiers, model.config.fifo_frames)
    page_tokens, cache_bytes = 64, settings.cache_bytes or None
    if model.language.embed_tokens.weight.is_cuda:
        page_tokens = 256
        cache_bytes = cache_bytes or int(torch.cuda.mem_get_info()[0] * GPU_SHARE)
    return Engine(
        model,
        max_dialogs=settings.max_dialogs,
        max_cameras=settings.decoder_cameras,
        cache_bytes=cache_bytes,
        page_tokens=page_tokens,
        retention=retention,
        quantise=quantise_to(parse_weight_format(settings.weights)),
    )


class LLMDecoder:
    """One replica: the model of a StreamChat folder, an engine in a thread, and the cameras in use."""

    def __init__(
        self,
        folder: Path,
        settings: Settings,
        store: FrameStore,
        *,
        device: str = "cpu",
        recorder: MetricsRecorder,
    ) -> None:
        torch.set_num_threads(settings.torch_threads)
        weights = parse_weight_format(settings.weights)
        model = load_model(folder, dtype=compute_dtype(weights, device), device=device)
        self.capacity = settings.fifo_frames or model.config.fifo_frames
        model.config = replace(model.config, fifo_frames=self.capacity)
        self.tokenizer = load_tokenizer(folder)
        self._settings, self._store = settings, store
        self._prompts = PromptBuilder(self.tokenizer, settings.max_prompt_tokens)
        recorder.set(DIALOG_PLACES, settings.max_dialogs)
        engine = create_engine(model, settings)
        stops = [self.tokenizer.eos_token_id, self.tokenizer.convert_tokens_to_ids("<|im_end|>")]
        self._loop = DecodeLoop(
            engine,
            suspended=SuspendedDialogs(self.tokenizer),
            token_text=lambda token: str(self.tokenizer.decode([token])),
            stop_ids=[stop for stop in stops if isinstance(stop, int)],
            stale_after_s=settings.silent_after_s,
            forget_after_s=settings.forget_after_s,
            on_forget=lambda camera: self._follower.unfollow(camera),
            metrics=LLMDecoderMetrics(engine, recorder),
        )
        self._follower = FrameFollower(store, self._loop.put_frames)
        self._num_dialogs = 0
        self._loop.start()
        self._follower.start()

    def close(self) -> None:
        """End both threads."""
        self._follower.close()
        self._loop.close()

    def check(self) -> None:
        """Raises RuntimeError when a thread has ended or hangs, so that the replica is replaced."""
        for name, thread in (("decode loop", self._loop), ("frame follower", self._follower)):
            if not thread.alive:
                raise RuntimeError(f"the {name} has ended; the replica must be replaced")
            if (stuck_s := thread.progress.stuck_s) > STUCK_AFTER_S:
                raise RuntimeError(f"the {name} hangs since {stuck_s:.1f} s; the replica must be replaced")

    def stats(self) -> dict[str, float]:
        """Counts since the start."""
        loop = self._loop
        return {
            "dialogs": self._num_dialogs,
            "steps": loop.num_steps,
            "tokens": loop.num_tokens,
            "frames": loop.num_frames,
        }

    async def decode(self, request: DialogRequest) -> AsyncGenerator[list[DialogEvent]]:
        """The events of a dialog, in lists: DialogStarted, tokens, DialogEnded; or DialogFailed.

        A list is empty if nothing has happened for HEARTBEAT_S. Closing the iterator ends the dialog.
        """
        if self._num_dialogs >= self._settings.max_dialogs:
            message = f"all {self._settings.max_dialogs} places of this decoder are taken: ask again shortly"
            yield [retryable_failure(429, "decoder_full", message)]
            return
        self._num_dialogs += 1
        queue = EventQueue()
        dialog: LiveDialog | DialogFailed | None = None
        try:
            dialog = await self._begin(request, queue)
            if isinstance(dialog, DialogFailed):
                yield [dialog]
                return
            while True:
                events = await self._next_events(queue)
                yield events
                if events and isinstance(events[-1], DialogEnded | DialogFailed):
                    return
        finally:
            self._num_dialogs -= 1
            if isinstance(dialog, LiveDialog):
                self._loop.cancel(dialog)

    async def _next_events(self, queue: EventQueue) -> list[DialogEvent]:
        try:
            async with asyncio.timeout(HEARTBEAT_S):
                return await queue.take()
        except TimeoutError:
            hangs = self._loop.progress.stuck_s > TELL_AFTER_S
            return [decoder_lost("it hangs")] if hangs else []

    async def _begin(self, request: DialogRequest, queue: EventQueue) -> LiveDialog | DialogFailed:
        try:
            return await self._put_dialog(request, queue)
        except Exception as error:
            log.exception("request %s could not be started", request.request_id)
            message = f"the decoder failed: {type(error).__name__}"
            return DialogFailed(status=500, code="decoder_error", message=message)

    async def _put_dialog(self, request: DialogRequest, queue: EventQueue) -> LiveDialog | DialogFailed:
        try:
            prompt = await asyncio.to_thread(self._prompts.build, request.messages)
        except PromptTooLong as error:
            return DialogFailed(status=400, code="prompt_too_long", message=str(error))
        most = self._settings.max_completion_tokens
        if not 1 <= request.max_tokens <= most:
            message = f"max_tokens: got {request.max_tokens}, wanted 1 to {most}"
            return DialogFailed(status=400, code="bad_option", message=message)
        pace = request.tokens_per_second
        if pace is not None and not MIN_TOKENS_PER_S <= pace <= MAX_TOKENS_PER_S:
            message = f"tokens_per_second: got {pace}, wanted {MIN_TOKENS_PER_S:g} to {MAX_TOKENS_PER_S:g}"
            return DialogFailed(status=400, code="bad_option", message=message)
        frames: list[Frame] = []
        if request.camera != NO_CAMERA and not self._loop.has_frames(request.camera):
            try:
                async with asyncio.timeout(STORE_TIMEOUT_S):
                    frames = await asyncio.to_thread(self._store.newest, request.camera, self.capacity)
            except (StoreLost, TimeoutError):
                message = "the frame store cannot be reached, and no frames of this camera are here: ask again shortly"
                return retryable_failure(503, "store_lost", message)
            if not frames:
                message = f"camera {request.camera!r} has no frame yet: publish to it and ask again"
                return retryable_failure(409, "no_frame", message)
        private = is_private(request.camera)
        if not private and request.camera != NO_CAMERA:
            self._follower.follow(request.camera, frames[-1].frame_id if frames else BEFORE_ALL)
        dialog = LiveDialog(
            request=request,
            prompt_ids=prompt.token_ids,
            prompt_text=prompt.text,
            num_pinned_tokens=prompt.num_pinned_tokens,
            text_stream=TextStream(self.tokenizer, request.stop),
            emit=queue.put,
            clip_end_s=frames[-1].captured_s if private and frames else None,
            time_limit_s=min(self._settings.max_answer_s, request.time_limit_s or math.inf),
        )
        self._loop.put_dialog(dialog, frames)
        return dialog
