"""LLMDecoder: answers dialogs about cameras, looking again before every token. A shim over the engine."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from model.checkpoint.folder import load_model
from model.checkpoint.tokenizer import load_tokenizer
from model.checkpoint.weights import dtype_of, quantise_to, weights_named
from model.engine.engine import Engine
from model.engine.retention import Retention
from model.network.streamchat import StreamChat
from services.adapters.prometheus_recorder import PrometheusRecorder
from services.llm_decoder.decode_loop import DecodeLoop
from services.llm_decoder.frame_follower import FrameFollower
from services.llm_decoder.live_dialog import LiveDialog, refusal
from services.llm_decoder.resting_dialogs import RestingDialogs
from services.llm_decoder.text_stream import TextStream
from services.messages.dialog import DialogEnded, DialogEvent, DialogFailed, DialogRequest, Message
from services.messages.video import Frame
from services.ports.frame_store import BEFORE_ALL, FrameStore, StoreLost, is_private
from services.ports.metric_catalogue import DIALOG_PLACES
from services.ports.recorder import MetricsRecorder
from services.settings import Settings

GPU_SHARE = 0.85  # of what the weights leave free: the rest is for what a forward needs meanwhile


def engine_of(model: StreamChat, settings: Settings) -> Engine:
    """The engine, with all memory that the settings speak of; on a GPU, with what the weights left of it."""
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
        quantise=quantise_to(weights_named(settings.weights)),
    )


def oldest_turn(messages: Sequence[Message]) -> range | None:
    """Which messages go first when not all fit: the oldest question and its answers. None: only one is left."""
    asked = [number for number, message in enumerate(messages) if message.role == "user"]
    return range(asked[0], asked[1]) if len(asked) > 1 else None


class Outbox:
    """Events of one dialog on their way from the engine's thread to the event loop."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._events: deque[DialogEvent] = deque()
        self._filled = asyncio.Event()

    def put(self, events: list[DialogEvent]) -> None:
        """From any thread."""
        self._events.extend(events)
        try:
            self._loop.call_soon_threadsafe(self._filled.set)
        except RuntimeError:  # the event loop has ended, and with it whoever listened
            self._events.clear()

    async def take(self) -> list[DialogEvent]:
        """All events that wait, at least one: a reader that lags gets several tokens at once."""
        while not self._events:
            self._filled.clear()
            if not self._events:
                await self._filled.wait()
        taken: list[DialogEvent] = []
        while self._events:
            taken.append(self._events.popleft())
        return taken


class LLMDecoder:
    """One replica: a StreamChat folder, an engine in a thread, and the cameras it is asked about."""

    def __init__(
        self,
        folder: Path,
        settings: Settings,
        store: FrameStore,
        *,
        device: str = "cpu",
        recorder: MetricsRecorder | None = None,
    ) -> None:
        torch.set_num_threads(settings.torch_threads)
        weights = weights_named(settings.weights)
        model = load_model(folder, dtype=dtype_of(weights, device), device=device)
        self.capacity = settings.fifo_frames or model.config.fifo_frames
        model.config = replace(model.config, fifo_frames=self.capacity)
        self.tokenizer = load_tokenizer(folder)
        self._settings, self._store = settings, store
        self.recorder: MetricsRecorder = recorder or PrometheusRecorder("llm_decoder")
        self.recorder.set(DIALOG_PLACES, settings.max_dialogs)
        stops = [self.tokenizer.eos_token_id, self.tokenizer.convert_tokens_to_ids("<|im_end|>")]
        self._loop = DecodeLoop(
            engine_of(model, settings),
            resting=RestingDialogs(self.tokenizer),
            token_text=lambda token: str(self.tokenizer.decode([token])),
            stop_ids=[stop for stop in stops if isinstance(stop, int)],
            stale_after_s=settings.silent_after_s,
            forget_after_s=settings.forget_after_s,
            forgotten=lambda camera: self._follower.forget(camera),
            recorder=self.recorder,
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
        """Raises RuntimeError when a thread has died, so that the replica is replaced."""
        if not (self._loop.alive and self._follower.alive):
            raise RuntimeError("a thread of the decoder has ended; the replica must be replaced")

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
        """The dialog's events, as many at a time as have come: DialogStarted, tokens, DialogEnded; or DialogFailed.

        Closing the iterator ends the dialog.
        """
        if self._num_dialogs >= self._settings.max_dialogs:
            message = f"all {self._settings.max_dialogs} places of this decoder are taken: ask again shortly"
            yield [refusal(429, "decoder_full", message)]
            return
        self._num_dialogs += 1
        outbox = Outbox()
        try:
            refused = await self._begin(request, outbox)
            if refused is not None:
                yield [refused]
                return
            while True:
                events = await outbox.take()
                yield events
                if isinstance(events[-1], DialogEnded | DialogFailed):
                    return
        finally:
            self._num_dialogs -= 1
            self._loop.cancel(request.request_id)

    async def _begin(self, request: DialogRequest, outbox: Outbox) -> DialogFailed | None:
        longest = self._settings.max_prompt_tokens
        whole = self._template(request.messages)
        messages, prompt = list(request.messages), self._tokens(whole)
        while len(prompt) > longest and (oldest := oldest_turn(messages)):
            messages = [message for number, message in enumerate(messages) if number not in oldest]
            prompt = self._tokens(self._template(messages))
        if len(prompt) > longest:
            message = f"the prompt has {len(prompt)} tokens; at most {longest} fit"
            return DialogFailed(status=400, code="prompt_too_long", message=message)
        most = self._settings.max_completion_tokens
        if not 1 <= request.max_tokens <= most:
            message = f"max_tokens: got {request.max_tokens}, wanted 1 to {most}"
            return DialogFailed(status=400, code="bad_option", message=message)
        frames: list[Frame] = []
        if not self._loop.has_frames(request.camera):
            try:
                frames = await asyncio.to_thread(self._store.newest, request.camera, self.capacity)
            except StoreLost:
                message = "the frame store cannot be reached and this camera was not watched before: ask again shortly"
                return refusal(503, "store_lost", message)
            if not frames:
                message = f"camera {request.camera!r} has no frame yet: publish to it and ask again"
                return refusal(409, "no_frame", message)
        private = is_private(request.camera)
        if not private:
            self._follower.watch(request.camera, frames[-1].frame_id if frames else BEFORE_ALL)
        dialog = LiveDialog(
            request=request,
            prompt=prompt,
            prompt_text=whole,
            num_kept=self._num_instructions(messages, prompt),
            text=TextStream(self.tokenizer, request.stop),
            emit=outbox.put,
            clip_end_s=frames[-1].captured_s if private and frames else None,
        )
        self._loop.put_dialog(dialog, frames)
        return None

    def _template(self, messages: Sequence[Message], *, ask: bool = True) -> str:
        plain = [{"role": message.role, "content": message.text} for message in messages]
        return str(self.tokenizer.apply_chat_template(plain, add_generation_prompt=ask, tokenize=False))

    def _tokens(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def _num_instructions(self, messages: Sequence[Message], prompt: list[int]) -> int:
        """First tokens that are the system's: they stay when old turns are dropped."""
        if messages[0].role != "system":
            return 0
        own = self._tokens(self._template(messages[:1], ask=False))
        return len(own) if prompt[: len(own)] == own else 0
