"""The engine: continuous batching of dialogs that look again at their cameras before every token.

No threads, no Ray, no clock of its own: whoever owns it gives it frames and dialogs, and asks for steps. One step is
one forward for all dialogs of all cameras; dialogs on one camera read its one copy of the frames. What is not a step,
taking in frames and reading prompts, is done at once, or, where somebody speaks meanwhile, in pieces between steps.

Letters: B rows (dialogs of a step), T text tokens, F frames, P visual tokens a frame, Dv the vision encoder's width.
"""

from __future__ import annotations

import math
import secrets
import time
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from model.engine.cameras import Cameras, EngineFull
from model.engine.dialog import Dialog, PriorToken
from model.engine.frame_ring import RingFrame
from model.engine.options import DialogOptions
from model.engine.pages import camera_bytes, num_text_pages, token_bytes
from model.engine.retention import Retention
from model.engine.sampling import SamplerState, TokenLogprobs, sample
from model.engine.work_budget import WorkBudget
from model.network.streamchat import StreamChat
from model.runtime.decode_step import DecodeStep
from model.runtime.frame_ingest import FrameIngest, NewFrame
from model.runtime.kv_cache import FrameKVCache, TextKVCache
from model.runtime.packed_model import PackedModel
from model.runtime.packed_weights import Quantise
from model.runtime.prefill import PrefillBatch

DIALOG_TOKENS = 2048  # of text, for each dialog, if nobody says how much memory there is


class GeneratedToken(NamedTuple):
    """One token of one dialog, and the newest frame that it could see (None: no frame at all)."""

    dialog_id: str
    token_id: int
    frame_id: str | None
    captured_s: float | None
    temporal_index: int
    finish_reason: Literal["stop", "length"] | None
    logprobs: TokenLogprobs | None = None  # when they were asked for


class Engine:
    """Cameras' rings, dialogs, and steps. For a caller's mistake a method raises ValueError and changes nothing."""

    def __init__(
        self,
        model: StreamChat,
        *,
        max_dialogs: int = 256,
        max_cameras: int = 32,
        cache_bytes: int | None = None,
        page_tokens: int = 64,
        max_prefill_tokens: int = 512,
        retention: Retention | None = None,
        quantise: Quantise | None = None,
    ) -> None:
        """All memory that lasts is taken here, for good.

        Args:
            model: in eval mode, where it is to run; weights that are used together are laid together.
            max_dialogs: that may speak at once.
            max_cameras: rings, those of frozen dialogs' moments included.
            cache_bytes: for rings and text; None: what `max_dialogs` dialogs of 2048 tokens need.
            page_tokens: of text in one page (256 suits flash-attn).
            prefill_tokens: of prompts, read in one forward at most.
            retention: which frames a ring keeps; None: the newest, `config.fifo_frames` of them.
            quantise: for the text's weights (`model.checkpoint.weights`); `model` is used up by it.

        Raises:
            ValueError: `cache_bytes` holds less than the rings and one page of text.
        """
        self.model, self.config = model, model.config
        weight = model.language.embed_tokens.weight
        self.dtype, self.device = weight.dtype, weight.device
        self.max_dialogs, self.context_window = max_dialogs, self.config.max_position_embeddings
        self._dialogs: dict[str, Dialog] = {}
        self._suspended: dict[str, None] = {}  # longest at rest first
        num_pages = max_dialogs * (-(-min(self.context_window, DIALOG_TOKENS) // page_tokens) + 2)
        if cache_bytes is not None:
            sizes = {"cache_bytes": cache_bytes, "max_cameras": max_cameras, "page_tokens": page_tokens}
            num_pages = num_text_pages(self.config, self.dtype.itemsize, **sizes)
        with torch.inference_mode():
            self._frames = FrameKVCache(self.config, max_cameras, self.dtype, self.device)
            self._text = TextKVCache(self.config, num_pages, page_tokens, self.dtype, self.device)
        self._cameras = Cameras(self._frames, retention or Retention(self.config.fifo_frames))
        self._packed = PackedModel(model, quantise)
        self._ingest = FrameIngest(model, self._packed)
        self._prompts = WorkBudget(8, max_prefill_tokens)
        self._step: DecodeStep | None = None
        self.step_s = 0.0  # how long a step takes, lately

    # Memory

    @property
    def camera_bytes(self) -> int:
        """Of one camera's frames."""
        return camera_bytes(self.config, self.dtype.itemsize)

    @property
    def frame_bytes(self) -> int:
        """Of the frames of all cameras, and of frozen moments, that are kept now."""
        return self._frames.pages.num_allocated * self.camera_bytes

    @property
    def text_bytes(self) -> int:
        """Of the pages that hold dialogs' text now."""
        return self._text.pages.num_allocated * self._page_bytes

    @property
    def cache_limit_bytes(self) -> int:
        """Of all memory that was set aside for frames and text."""
        frames, text = self._frames.pages.num_pages, self._text.pages.num_pages
        return frames * self.camera_bytes + text * self._page_bytes

    def dialog_bytes(self, dialog_id: str) -> int:
        """Of one dialog's text."""
        return self._text.pages.num_held(self._dialog(dialog_id)) * self._page_bytes

    @property
    def _page_bytes(self) -> int:
        return self._text.page_tokens * token_bytes(self.config, self.dtype.itemsize)

    # Cameras

    @property
    def cameras(self) -> dict[str, RingFrame | None]:
        """The cameras that have a ring, and each one's newest frame."""
        return {camera: ring.newest for camera, ring in self._cameras.rings.items()}

    def add_camera(self, camera: str) -> str | None:
        """Make an empty ring for a new camera; returns the camera that was dropped for it, if one was.

        When no ring is free, the camera goes that nobody watches and nobody has asked about for longest.
        Raises EngineFull when all are watched.
        """
        if camera in self._cameras.rings:
            raise ValueError(f"camera: {camera!r} is there already")
        watched = {dialog.camera for name, dialog in self._dialogs.items() if name not in self._suspended}
        if (dropped := self._cameras.camera_to_evict(watched)) is not None:
            self.drop_camera(dropped)
        self._cameras.add(camera)
        return dropped

    def drop_camera(self, camera: str) -> None:
        """Forget a camera, its frames, and dialogs at rest; no other dialog may be open on it."""
        self._cameras.ring(camera)
        users = [dialog.dialog_id for dialog in self._dialogs.values() if dialog.camera == camera]
        if speaking := [user for user in users if user not in self._suspended]:
            raise ValueError(f"camera: {camera!r} still has dialogs: {', '.join(speaking[:5])}")
        for user in users:
            self.close_dialog(user)
        self._ingest.drop_camera(camera)
        self._cameras.drop(camera)

    def add_frame(self, camera: str, frame_id: str, captured_s: float, features: Tensor) -> None:
        """A frame arrives: `features` [P, Dv], the vision encoder's output."""
        self.add_frames(camera, [(frame_id, captured_s, features)])

    def add_frames(self, camera: str, frames: Sequence[tuple[str, float, Tensor]]) -> None:
        """Frames arrive, oldest first, and are taken in at once, with all that waited before them."""
        self.enqueue_frames(camera, frames)
        while self._ingest.busy:
            self._take_frames(math.inf)

    def enqueue_frames(self, camera: str, frames: Sequence[tuple[str, float, Tensor]]) -> None:
        """Frames arrive, oldest first; `work` takes them in."""
        self._cameras.ring(camera)
        shape = (self.config.vision.num_visual_tokens, self.config.vision.hidden_size)
        for frame_id, _, features in frames:
            if tuple(features.shape) != shape:
                raise ValueError(
                    f"features of frame {frame_id}: got shape {tuple(features.shape)}, wanted {shape}"
                )
        if frames:
            new = [NewFrame(camera, *frame) for frame in frames]
            self._ingest.add(new, self._cameras.retention.capacity)

    # Dialogs

    @property
    def dialogs(self) -> dict[str, Dialog]:
        """The open dialogs, those at rest included, to look at, not to change."""
        return self._dialogs

    def open_dialog(
        self,
        dialog_id: str,
        camera: str,
        token_ids: Sequence[int],
        options: DialogOptions,
        *,
        prior_tokens: Sequence[PriorToken] = (),
        asked_s: float = 0.0,
        num_pinned_tokens: int = 0,
        prefill_now: bool = True,
    ) -> None:
        """Begin a dialog: reads all of the prompt but its last token, which the first step reads.

        Args:
            dialog_id: a new name.
            camera: one that was added; it may be without frames yet.
            token_ids: the prompt, through the chat template.
            options: how to watch and speak.
            spoken: what another engine already answered, to go on from there; counts for `max_tokens`.
            asked_s: when the question was asked, on the cameras' clock; needed with `spoken` only.
            num_kept: first tokens of the prompt (instructions) that stay when old turns are dropped.
            at_once: read the prompt now; if not, `work` reads it, and `ready` tells when that is done.

        Raises:
            EngineFull: `max_dialogs` are open, or there is no memory for one more of this length.
        """
        ring = self._cameras.ring(camera)
        if dialog_id in self._dialogs:
            raise ValueError(f"dialog_id: {dialog_id!r} is open already")
        if len(prior_tokens) >= options.max_tokens:
            raise ValueError(
                f"prior_tokens: got {len(prior_tokens)} tokens, wanted fewer than max_tokens {options.max_tokens}"
            )
        self._check_tokens([*token_ids, *(token.token_id for token in prior_tokens)])
        self._check_bias(options)
        if not token_ids:
            raise ValueError("token_ids: got none, wanted at least one")
        if len(self._dialogs) - len(self._suspended) >= self.max_dialogs:
            raise EngineFull(f"all {self.max_dialogs} dialogs are taken")
        dialog = Dialog(dialog_id, camera, options, ring, self._voice(options), num_pinned_tokens)
        self._admit(dialog, len(token_ids))
        self._dialogs[dialog_id] = dialog
        try:
            self._look(dialog)
            dialog.start(token_ids, prior_tokens, asked_s)
            if prefill_now:
                self._read_all(dialog)
        except BaseException:  # out of memory, say: the place must not stay taken
            self.close_dialog(dialog_id)
            raise
        self._cameras.touch(camera)

    def start_turn(
        self,
        dialog_id: str,
        token_ids: Sequence[int],
        options: DialogOptions | None = None,
        *,
        prefill_now: bool = True,
    ) -> None:
        """The next question of a dialog whose turn is over; its text so far is kept. `options` None: as before.

        Where the model's window is full, oldest turns are dropped, whole ones, as many as must go.
        """
        dialog = self._dialog(dialog_id)
        if dialog.finish_reason is None:
            raise ValueError(f"dialog_id: {dialog_id!r} is still speaking")
        if not token_ids:
            raise ValueError("token_ids: got none, wanted at least one")
        self._check_tokens(token_ids)
        self._check_bias(options or dialog.options)
        before, dialog.options = dialog.options, options or dialog.options
        try:
            self._admit(dialog, len(token_ids) + 1)
            self._look(dialog)
        except EngineFull:
            dialog.options = before
            raise
        self._suspended.pop(dialog_id, None)
        dialog.sampler = self._voice(dialog.options)
        dialog.start_turn(token_ids, dialog.camera_ring.num_arrived - 1)
        self._cameras.touch(dialog.camera)
        if prefill_now:
            self._read_all(dialog)

    def is_prefilled(self, dialog_id: str) -> bool:
        """Whether the prompt is read, so that a step may be asked for."""
        return not self._dialog(dialog_id).pending_tokens

    def suspend_dialog(self, dialog_id: str) -> None:
        """End the turn and keep the dialog's text, to be asked again, until its memory is needed for others."""
        dialog = self._dialog(dialog_id)
        dialog.end_turn("stop")
        self._read_all(dialog)
        self._unlook(dialog)
        self._text.pages.reserve(dialog, self._text.pages.num_held(dialog))
        self._suspended[dialog_id] = None
        if len(self._suspended) > self.max_dialogs:
            self.close_dialog(next(iter(self._suspended)))

    def close_dialog(self, dialog_id: str) -> None:
        """End a dialog and free its place."""
        dialog = self._dialog(dialog_id)
        del self._dialogs[dialog_id]
        self._suspended.pop(dialog_id, None)
        self._unlook(dialog)
        self._text.pages.release(dialog)

    # Steps

    def step(self, dialog_ids: Sequence[str]) -> list[GeneratedToken]:
        """One token for each of these dialogs, in their order, in one forward. A finished dialog makes no more."""
        began = time.perf_counter()
        rows = self._rows(dialog_ids)
        if not rows:
            return []
        draws = sample(self._forward(rows), [dialog.sampler for dialog in rows])
        made = {
            dialog.dialog_id: self._say(dialog, token_id, chances)
            for dialog, (token_id, chances) in zip(rows, draws, strict=True)
        }
        took_s = time.perf_counter() - began
        self.step_s = took_s if not self.step_s else 0.8 * self.step_s + 0.2 * took_s
        return [made[dialog_id] for dialog_id in dialog_ids]

    def logits(self, dialog_ids: Sequence[str]) -> Tensor:
        """Logits [B, vocabulary] of each dialog's next token, from the frames there are now. Changes no dialog."""
        rows = self._rows(dialog_ids)
        if not rows:
            return torch.empty(0, self.config.vocab_size, dtype=self.dtype, device=self.device)
        row_of = {dialog.dialog_id: row for row, dialog in enumerate(rows)}
        return self._forward(rows)[[row_of[dialog_id] for dialog_id in dialog_ids]]

    def append_token(self, dialog_id: str, token_id: int) -> GeneratedToken:
        """Take this token as the one made from the last `logits`."""
        return self._say(self._dialog(dialog_id), token_id)

    def run_background(self, allowed_s: float) -> bool:
        """Beside the steps: take in frames and read prompts, in pieces, at least one of each that waits.

        Pieces become as small as they must for two of them to fit in `allowed_s`. Returns whether more waits.
        """
        end_s = time.perf_counter() + allowed_s
        while True:
            if self._ingest.busy:
                self._take_frames(allowed_s)
            if any(dialog.pending_tokens for dialog in self._dialogs.values()):
                self._read_some(allowed_s)
            waits = self._ingest.busy or any(dialog.pending_tokens for dialog in self._dialogs.values())
            if not waits or time.perf_counter() >= end_s:
                return waits

    # Inside

    def _rows(self, dialog_ids: Sequence[str]) -> list[Dialog]:
        """The dialogs of a step, those of one ring together, with their prompts read and room for a token."""
        dialogs = [self._dialog(dialog_id) for dialog_id in dialog_ids]
        if len(set(dialog_ids)) != len(dialogs):
            raise ValueError("dialog_ids: got one twice")
        if done := [dialog.dialog_id for dialog in dialogs if dialog.finish_reason is not None]:
            raise ValueError(f"dialog_ids: {done[0]!r} has finished its turn")
        for dialog in dialogs:
            self._read_all(dialog)
            self._make_room(dialog, 1)
        return sorted(dialogs, key=lambda dialog: dialog.ring.page)

    @torch.inference_mode()
    def _forward(self, rows: Sequence[Dialog]) -> Tensor:
        """Logits [B, vocabulary] of the rows; the next forward writes over them."""
        if self._step is None or not self._step.advance(rows):
            self._step = DecodeStep(self._packed, self._text, self._frames, rows)
        self._step.run()
        return self._step.logits

    def _say(self, dialog: Dialog, token_id: int, chances: TokenLogprobs | None = None) -> GeneratedToken:
        frame = dialog.newest_visible_frame()
        dialog.append_token(
            token_id,
            window_full=len(dialog.turns) < 2 and dialog.num_cached_tokens + 2 >= self.context_window,
        )
        frame_id, captured_s = (None, None) if frame is None else (frame.frame_id, frame.captured_s)
        return GeneratedToken(
            dialog.dialog_id,
            token_id,
            frame_id,
            captured_s,
            dialog.last_temporal_index,
            dialog.finish_reason,
            chances,
        )

    @torch.inference_mode()
    def _take_frames(self, allowed_s: float) -> None:
        """One piece of the frames' way."""
        for frame, chain in self._ingest.run_piece(allowed_s):
            slot = self._cameras.add_frame(frame, chain)
            for dialog in self._dialogs.values():
                if slot is not None and dialog.camera == frame.camera:
                    dialog.camera_frame_index[slot] = dialog.clock.frame_arrived()

    def _read_some(self, allowed_s: float) -> None:
        """One forward's worth of prompts, those that came first before others."""
        room = self._prompts.num_tokens(allowed_s)
        chunks = list[tuple[Dialog, int]]()
        for dialog in self._dialogs.values():
            if num := min(room, len(dialog.pending_tokens)):
                chunks.append((dialog, num))
                room -= num
        began = time.perf_counter()
        self._read(chunks)
        self._prompts.record(sum(num for _, num in chunks), time.perf_counter() - began)

    def _read_all(self, dialog: Dialog) -> None:
        while dialog.pending_tokens:
            self._read([(dialog, min(self._prompts.num_tokens(math.inf), len(dialog.pending_tokens)))])

    @torch.inference_mode()
    def _read(self, chunks: Sequence[tuple[Dialog, int]]) -> None:
        for dialog, num in chunks:
            self._make_room(dialog, num)
        parts = [(dialog, dialog.pending_tokens[:num]) for dialog, num in chunks]
        batch = PrefillBatch(self._packed, self._text, self._frames, parts)
        self._packed.forward(batch.buffers, batch)
        for dialog, num in chunks:
            dialog.mark_computed(num)

    def _admit(self, dialog: Dialog, num_tokens: int) -> None:
        """Set pages aside for a turn of so many tokens and its answer; dialogs at rest make way."""
        pages, size = self._text.pages, self._text.page_tokens
        most = dialog.num_cached_tokens + num_tokens + dialog.options.max_tokens
        # Where turns are dropped, the first and the last page of what is missing may be half empty.
        broken = 2 if most > self.context_window or dialog.dropped_tokens[1] else 0
        wanted = -(-min(most, self.context_window) // size) + broken
        resting = [name for name in self._suspended if name != dialog.dialog_id]
        spare = sum(pages.num_held(self._dialogs[name]) for name in resting) + pages.num_unreserved
        if wanted - pages.num_reserved(dialog) > spare:
            raise EngineFull(
                f"no memory for a dialog of {most} tokens beside the {len(self._dialogs)} there are"
            )
        while not pages.reserve(dialog, wanted):
            self.close_dialog(resting.pop(0))

    def _make_room(self, dialog: Dialog, num_new: int) -> None:
        """Pages for so many tokens more; old turns leave where the window is full."""
        pages, size = self._text.pages, self._text.page_tokens
        while (
            dialog.num_cached_tokens + num_new > self.context_window
            or self._reaches(dialog) > self.context_window
        ):
            freed = dialog.drop_oldest_turn(size)
            if freed is None:
                break
            for page in freed:
                pages.free(dialog, page)
        while len(dialog.pages) * size < dialog.num_computed_tokens + num_new:
            dialog.pages.append(pages.allocate(dialog))

    @staticmethod
    def _reaches(dialog: Dialog) -> int:
        """How far back the oldest turn lies on the dialog's clock, in tokens."""
        return dialog.last_temporal_index - dialog.turns[0].temporal_index + 1

    def _look(self, dialog: Dialog) -> None:
        """A frozen dialog looks at a copy of its camera's ring."""
        self._unlook(dialog)
        if dialog.options.visual_context == "frozen":
            dialog.ring = self._cameras.acquire_snapshot(dialog.camera_ring)

    def _unlook(self, dialog: Dialog) -> None:
        if dialog.ring is not dialog.camera_ring:
            self._cameras.release_snapshot(dialog.ring, dialog.camera_ring)
        dialog.ring, dialog.ring_frame_index, dialog.last_visible_frame = (
            dialog.camera_ring,
            dialog.camera_frame_index,
            None,
        )

    def _voice(self, options: DialogOptions) -> SamplerState:
        seed = secrets.randbits(63) if options.seed is None else options.seed
        return SamplerState(options, seed, self.config.vocab_size, self.device)

    def _check_tokens(self, token_ids: Sequence[int]) -> None:
        room = self.context_window - 1  # one token must fit after them
        if len(token_ids) > room:
            raise ValueError(f"token_ids: got {len(token_ids)} tokens, wanted at most {room}")
        if wrong := [token for token in token_ids if not 0 <= token < self.config.vocab_size]:
            raise ValueError(f"token_ids: got {wrong[0]}, wanted 0 to {self.config.vocab_size - 1}")

    def _check_bias(self, options: DialogOptions) -> None:
        for token_id, _ in options.logit_bias:
            if not 0 <= token_id < self.config.vocab_size:
                raise ValueError(
                    f"logit_bias: got token {token_id}, wanted 0 to {self.config.vocab_size - 1}"
                )

    def _dialog(self, dialog_id: str) -> Dialog:
        if dialog_id not in self._dialogs:
            raise ValueError(f"dialog_id: got {dialog_id!r}, which is not open")
        return self._dialogs[dialog_id]
