"""The engine: continuous batching of dialogs that see their cameras anew before every token.

It has no threads and no clock of its own: its owner adds frames and dialogs and asks for steps. A step is one forward
for all dialogs of all cameras; dialogs on one camera read the same copy of its frames. Frame ingest and prefill run at
once, or, so that no active dialog waits for them, in pieces between steps.

Letters: B rows (dialogs of a step), V vocabulary, P visual tokens a frame, Dv the vision encoder's width.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence

import torch
from torch import Tensor

from model.engine.admission import Admission, EngineFull
from model.engine.background import BackgroundWork
from model.engine.cameras import Cameras
from model.engine.dialog import Dialog, DialogsFailed, GeneratedToken, PriorToken
from model.engine.frame_ring import RingFrame
from model.engine.options import DialogOptions
from model.engine.pages import num_default_text_pages, num_text_pages
from model.engine.retention import Retention
from model.engine.sampling import NonFiniteLogits, SamplerState, TokenLogprobs, sample
from model.network.streamchat import StreamChat
from model.runtime.frame_ingest import NewFrame
from model.runtime.model_runner import ModelRunner
from model.runtime.packed_weights import Quantise


class Engine:
    """Cameras, dialogs and steps. A method that raises ValueError for a caller's mistake changes nothing."""

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
        """Allocate the caches, which keep their size.

        Args:
            model: in eval mode, on its device; weights that are used together are joined. It must not be trained
                further: the engine shares some of its weights and copies others.
            max_dialogs: active at the same time.
            max_cameras: rings, those of snapshots for frozen dialogs included.
            cache_bytes: for rings and text; None: enough for `max_dialogs` dialogs of 2048 tokens.
            page_tokens: text tokens in one page (256 suits flash-attn).
            max_prefill_tokens: the most prompt tokens of one forward.
            retention: which frames a ring keeps; None: the newest `config.fifo_frames`.
            quantise: for the text's weights (`model.checkpoint.weights`); `model` cannot be used afterwards.

        Raises:
            ValueError: `cache_bytes` is less than the rings and one page of text, or `retention` is for a ring of
                another size.
        """
        self.model, self.config = model, model.config
        retention = retention or Retention(self.config.fifo_frames)
        if retention.capacity != self.config.fifo_frames:
            raise ValueError(
                f"retention: got a capacity of {retention.capacity}, wanted {self.config.fifo_frames}, "
                "the model's fifo_frames"
            )
        num_pages = num_default_text_pages(self.config, max_dialogs=max_dialogs, page_tokens=page_tokens)
        if cache_bytes is not None:
            sizes = {"cache_bytes": cache_bytes, "max_cameras": max_cameras, "page_tokens": page_tokens}
            num_pages = num_text_pages(self.config, model.dtype.itemsize, **sizes)
        runner = ModelRunner(
            model, num_rings=max_cameras, num_text_pages=num_pages, page_tokens=page_tokens, quantise=quantise
        )
        self._runner, self.dtype, self.device = runner, model.dtype, runner.frame_cache.device
        self._admission = Admission(
            runner.text_cache.pages,
            page_tokens,
            runner.text_cache.clear,
            max_dialogs=max_dialogs,
            context_window=self.config.max_position_embeddings,
            vocab_size=self.config.vocab_size,
        )
        self._cameras = Cameras(runner.frame_cache.pages, retention, runner.frame_cache.copy)
        self._background = BackgroundWork(runner, self._cameras, self._admission, max_prefill_tokens)
        self.frame_pages, self.text_pages = runner.frame_cache.pages, runner.text_cache.pages
        self.num_failed_rows = 0  # of steps: their logits were not finite
        self.step_s = 0.0  # moving average of a step's duration

    # Cameras

    @property
    def cameras(self) -> dict[str, RingFrame | None]:
        """The cameras that have a ring, and the newest frame of each."""
        return {camera: ring.newest for camera, ring in self._cameras.rings.items()}

    def add_camera(self, camera: str) -> str | None:
        """Make an empty ring for a new camera; returns the camera that was evicted for it, if any.

        If no ring is free, the unwatched camera that was asked about least recently is evicted.
        Raises EngineFull if all are watched.
        """
        if camera in self._cameras.rings:
            raise ValueError(f"camera: {camera!r} is there already")
        evicted = self._cameras.camera_to_evict(self._admission.watched_cameras())
        if evicted is not None:
            self.drop_camera(evicted)
        self._cameras.add(camera)
        return evicted

    def drop_camera(self, camera: str) -> None:
        """Remove a camera, its frames and its suspended dialogs; no active dialog may be on it."""
        self._cameras.ring(camera)
        active, suspended = self._admission.on_camera(camera)
        if active:
            raise ValueError(f"camera: {camera!r} still has dialogs: {', '.join(active[:5])}")
        for dialog_id in suspended:
            self.close_dialog(dialog_id)
        self._runner.ingest.drop_camera(camera)
        self._cameras.drop(camera)

    @property
    def num_skipped_frames(self) -> int:
        """Frames that were not taken in because they have NaN or infinity, or made ingest fail."""
        return self._runner.ingest.num_skipped

    def add_frame(self, camera: str, frame_id: str, captured_s: float, features: Tensor) -> None:
        """Ingest a frame now: `features` [P, Dv], the vision encoder's output."""
        self.add_frames(camera, [(frame_id, captured_s, features)])

    def add_frames(self, camera: str, frames: Sequence[tuple[str, float, Tensor]]) -> None:
        """Ingest frames now, oldest first, and all that were queued before them."""
        self.enqueue_frames(camera, frames)
        self._background.ingest_all()

    def enqueue_frames(self, camera: str, frames: Sequence[tuple[str, float, Tensor]]) -> None:
        """Queue frames, oldest first; `run_background` ingests them."""
        self._cameras.ring(camera)
        shape = (self.config.vision.num_visual_tokens, self.config.vision.hidden_size)
        for frame_id, _, features in frames:
            if tuple(features.shape) != shape:
                raise ValueError(
                    f"features of frame {frame_id}: got shape {tuple(features.shape)}, wanted {shape}"
                )
        if frames:
            new = [NewFrame(camera, *frame) for frame in frames]
            self._runner.ingest.add(new, self._cameras.retention.capacity)

    # Dialogs

    @property
    def dialogs(self) -> dict[str, Dialog]:
        """The open dialogs, suspended ones included. Read only."""
        return self._admission.dialogs

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
        """Start a dialog. Prefill reads all of the prompt but its last token, which the first step reads.

        Args:
            dialog_id: a new name.
            camera: one that was added; it may have no frame yet.
            token_ids: the prompt, through the chat template.
            options: what the dialog sees, sampling, and when it stops.
            prior_tokens: the answer so far by another engine, to resume it; they count for `max_tokens`.
            asked_s: when the question was asked, on the cameras' clock; needed with `prior_tokens` only.
            num_pinned_tokens: first tokens of the prompt (instructions) that stay when old turns are dropped.
            prefill_now: if not, `run_background` does the prefill, and `is_prefilled` tells when it is done.

        Raises:
            EngineFull: `max_dialogs` are active, or there is no memory for one more of this length.
        """
        ring = self._cameras.ring(camera)
        self._admission.check_prompt(token_ids, options, prior_tokens)
        dialog = Dialog(dialog_id, camera, options, ring, self._sampler(options), num_pinned_tokens)
        self._admission.admit(dialog, len(token_ids))
        try:
            self._cameras.select_ring(dialog)
            dialog.start(token_ids, prior_tokens, asked_s)
            if prefill_now:
                self._background.prefill(dialog)
        except BaseException:  # such as out of memory: the dialog must not keep its pages
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
        """Ask the next question of a dialog whose turn is over. `options` None: those of the turn before.

        If the context window is full, the oldest turns are dropped.
        """
        dialog = self._admission.dialog(dialog_id)
        if dialog.finish_reason is None:
            raise ValueError(f"dialog_id: {dialog_id!r} is still speaking")
        before, options = dialog.options, options or dialog.options
        self._admission.check_prompt(token_ids, options)
        dialog.options = options
        try:
            self._admission.reserve(dialog, len(token_ids) + 1)
            self._cameras.select_ring(dialog)
        except EngineFull:
            dialog.options = before
            raise
        self._admission.suspended.pop(dialog_id, None)
        dialog.sampler = self._sampler(options)
        dialog.start_turn(token_ids, dialog.camera_ring.num_arrived - 1)
        self._cameras.touch(dialog.camera)
        if prefill_now:
            self._background.prefill(dialog)

    def is_prefilled(self, dialog_id: str) -> bool:
        """Whether the prompt was read, so that a step is possible."""
        return not self._admission.dialog(dialog_id).pending_tokens

    def suspend_dialog(self, dialog_id: str) -> None:
        """End the turn and keep the dialog's text for a next turn, until other dialogs need its memory."""
        dialog = self._admission.dialog(dialog_id)
        dialog.end_turn("stop")
        self._background.prefill(dialog)
        self._cameras.leave_snapshot(dialog)
        self._admission.suspend(dialog)

    def close_dialog(self, dialog_id: str) -> None:
        """End a dialog and free its memory."""
        dialog = self._admission.dialog(dialog_id)
        self._cameras.leave_snapshot(dialog)
        self._admission.remove(dialog)

    # Steps

    def step(self, dialog_ids: Sequence[str]) -> list[GeneratedToken]:
        """Generate one token for each of these dialogs, in their order, in one forward. None may have finished.

        Raises DialogsFailed if the model has no finite logits for some of them: close these, and step the others.
        """
        started = time.perf_counter()
        rows = self._rows(dialog_ids)
        if not rows:
            return []
        try:
            sampled = sample(self._runner.decode(rows), [dialog.sampler for dialog in rows])
        except NonFiniteLogits as error:
            self.num_failed_rows += len(error.rows)
            raise DialogsFailed([rows[row].dialog_id for row in error.rows], str(error)) from error
        tokens = {
            dialog.dialog_id: self._append(dialog, token_id, logprobs)
            for dialog, (token_id, logprobs) in zip(rows, sampled, strict=True)
        }
        took_s = time.perf_counter() - started
        self.step_s = took_s if not self.step_s else 0.8 * self.step_s + 0.2 * took_s
        return [tokens[dialog_id] for dialog_id in dialog_ids]

    def logits(self, dialog_ids: Sequence[str]) -> Tensor:
        """Logits [B, V] of each dialog's next token, from the present frames. Changes no dialog."""
        rows = self._rows(dialog_ids)
        if not rows:
            return torch.empty(0, self.config.vocab_size, dtype=self.dtype, device=self.device)
        row_of = {dialog.dialog_id: row for row, dialog in enumerate(rows)}
        return self._runner.decode(rows)[[row_of[dialog_id] for dialog_id in dialog_ids]]

    def append_token(self, dialog_id: str, token_id: int) -> GeneratedToken:
        """Append this token as the one that was sampled from the last `logits`."""
        return self._append(self._admission.dialog(dialog_id), token_id)

    def run_background(self, allowed_s: float) -> bool:
        """Between steps: ingest queued frames and prefill prompts, in pieces, at least one of each that waits.

        A piece is small enough for two of them to fit in `allowed_s`. Returns whether more waits.
        """
        return self._background.run(allowed_s)

    def _rows(self, dialog_ids: Sequence[str]) -> list[Dialog]:
        """The dialogs of a step, ordered by ring, with their prompts read and room for a token."""
        dialogs = self._admission.check_step(dialog_ids)
        for dialog in dialogs:
            self._background.prefill(dialog)
            self._admission.make_room(dialog, 1)
        return sorted(dialogs, key=lambda dialog: dialog.ring.page)

    def _append(self, dialog: Dialog, token_id: int, logprobs: TokenLogprobs | None = None) -> GeneratedToken:
        window_full = self._admission.is_window_full(dialog)
        return dialog.append_token(token_id, logprobs, window_full=window_full)

    def _sampler(self, options: DialogOptions) -> SamplerState:
        seed = secrets.randbits(63) if options.seed is None else options.seed
        return SamplerState(options, seed, self.config.vocab_size, self.device)
